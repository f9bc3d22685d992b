"""The decoder: draws rollouts from the policy's own weights. Knows nothing of rewards."""

from rs_aligner.model import lean_megatron

lean_megatron.install()
