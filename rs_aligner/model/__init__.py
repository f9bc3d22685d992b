"""The model that is trained and decoded: its architecture, weights and tokenizer, and the ranks it is on.

Under `policy` and `generation`, which both stand on it. This room knows Megatron and torch, and nothing of
training, sampling and rewards.
"""

from rs_aligner.model import lean_megatron

lean_megatron.install()
