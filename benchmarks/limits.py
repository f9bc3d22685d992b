"""The least time that a decoding can take on a device: `on_device.py` measures against it.

Each part of the work takes as long as its bytes take to read or its operations to compute, whichever is
longer. Of weights, keys and values every byte is read once where it is used, in bf16. Left out on purpose:
activations, norms, the choice of a token, and that one part could be computed while another is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rs_aligner.model.architecture import Architecture

BF16 = 2  # bytes of a number


@dataclass(frozen=True)
class Part:
    """Work of one kind, over a whole decoding.

    Attributes:
        bytes: that must be read.
        operations: of matrix products; a product and its sum are two.
    """

    bytes: int
    operations: int

    def seconds(self, bandwidth: float, product_rate: float) -> float:
        """The longer of reading and computing, at so many bytes and operations a second."""
        return max(self.bytes / bandwidth, self.operations / product_rate)


def parts_of(
    arch: Architecture, prompt_lengths: Sequence[int], num_rollouts: int, max_length: int
) -> dict[str, Part]:
    """The parts of a decoding in which every rollout has `max_length` tokens, the first from its prompt.

    In each, bytes and operations grow alike from step to step, so the longer sum is the sum of the longer.
    """
    num_prompts, tokens, steps = len(prompt_lengths), sum(prompt_lengths), max_length - 1
    rows = num_prompts * num_rollouts
    layers, output = _weights(arch)
    weights, cached = BF16 * (layers + output), arch.cache_bytes_per_token(BF16)
    pair = 4 * arch.num_layers * arch.num_heads * arch.head_dim  # operations of a token that looks at one
    pairs = sum(length * (length + 1) // 2 for length in prompt_lengths)
    own = rows * steps * (steps + 1) // 2
    return {
        "prompts: weights": Part(weights, 2 * (tokens * layers + num_prompts * output)),
        "prompts: attention": Part(tokens * cached, pairs * pair),
        "steps: weights": Part(steps * weights, 2 * steps * rows * (layers + output)),
        "steps: attention to prompts": Part(steps * tokens * cached, steps * num_rollouts * tokens * pair),
        "steps: attention to own tokens": Part(own * cached, own * pair),
    }


def _weights(arch: Architecture) -> tuple[int, int]:
    """Numbers in the matrices of all layers, and in that of the output."""
    heads = (
        2 * arch.num_heads + 2 * arch.num_kv_heads
    ) * arch.head_dim  # queries, keys, values; what they give
    layer = arch.hidden_size * (heads + 3 * arch.intermediate_size)
    return arch.num_layers * layer, arch.vocab_size * arch.hidden_size
