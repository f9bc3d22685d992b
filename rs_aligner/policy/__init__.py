"""The policy: a Megatron GPT, the process groups it runs in, its training step and its checkpoints.

This room knows Megatron and torch and nothing of rewards.
"""

from rs_aligner.model import lean_megatron

lean_megatron.install()
