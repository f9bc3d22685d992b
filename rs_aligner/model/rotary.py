"""Rotary positions: the frequencies of each kind of scaling, and the table of cosines and sines.

Takes the place of Megatron's module, so that training, scoring and all decoders read one table, whatever
scales it. Left out on purpose: frequencies that change with the length of a sequence (`dynamic` beyond its
positions, `longrope`), and heads that are rotated in part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from rs_aligner.model.architecture import Rope


class Rotary(RotaryEmbedding):
    """What Megatron's model asks for positions: here for cosines and sines, not for angles."""

    def __init__(self, rope: Rope, dim: int, device: torch.device) -> None:
        super().__init__(dim, 1.0, use_cpu_initialization=True)
        self.attention_factor = rope.attention_factor
        self.inv_freq = frequencies(rope, dim).to(device)
        self._table = self.inv_freq.new_empty(0)

    def get_cos_sin(self, max_seq_len: int, offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions, float32 `[max_seq_len, dim / 2]`, times the attention's factor.

        Source: Su et al., "RoFormer" (2021), equation 34. Queries and keys both have the factor, so scores
        have its square, 1/t in Peng et al., "YaRN" (2023), arXiv 2309.00071.
        """
        angles = self.get_freqs_non_repeated(max_seq_len, offset)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def forward(self, max_seq_len: int, *_: Any, **__: Any) -> torch.Tensor:
        """Cosines and sines side by side: `[S, 1, 1, dim]`. The longest table so far is kept."""
        if len(self._table) < max_seq_len:
            self._table = torch.cat(self.get_cos_sin(max_seq_len), dim=-1)[:, None, None]
        return self._table[:max_seq_len]


def frequencies(rope: Rope, dim: int) -> torch.Tensor:
    """Radians a position of each pair of a head's `dim` numbers: float32 `[dim / 2]`.

    Scaling keeps a share of each frequency as it was, and lowers the rest by `factor`: "NTK-by-parts" in Peng
    et al., "YaRN" (2023), arXiv 2309.00071. Kinds differ in that share alone (`KEPT`).
    """
    plain = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    kept = KEPT[rope.scaling](rope, plain)
    return (1 - kept) * plain / rope.factor + kept * plain


def _all(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(plain)


def _nothing(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Chen et al., "Extending Context Window ... via Positional Interpolation" (2023), arXiv 2306.15595."""
    return torch.zeros_like(plain)


def _by_rotations(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """A ramp over how often a pair turns within the original length.

    Source: Peng et al. (2023), arXiv 2309.00071, the ramp of "NTK-by-parts"; Llama 3.1 (2024) has it.
    """
    rotations = rope.original_positions / (2 * math.pi / plain)
    return ((rotations - rope.slow) / (rope.fast - rope.slow)).clamp(0, 1)


def _by_dimensions(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """A ramp over pairs, between those that turn `fast` and `slow` times within the original length.

    Source: what the code of Peng et al. (2023), arXiv 2309.00071, has for the ramp of "NTK-by-parts"; models
    with `rope_type: yarn` were made with it.
    """
    dim = 2 * len(plain)

    def pair_that_turns(times: float) -> float:
        wavelength = rope.original_positions / times
        return dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.fast), pair_that_turns(rope.slow)
    if rope.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001  # what the code of the paper takes for a ramp without width
    return 1 - ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)


KEPT: dict[str, Callable[[Rope, torch.Tensor], torch.Tensor]] = {
    "none": _all,
    "linear": _nothing,
    "llama3": _by_rotations,
    "yarn": _by_dimensions,
}
"""Which share of each frequency, float32 `[dim / 2]`, a kind of scaling leaves as it was."""
