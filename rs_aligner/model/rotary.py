"""Rotary positions: the frequencies of each kind of scaling, and the table of cosines and sines.

Takes the place of Megatron's module, so that training, scoring and all decoders read one table, whatever
scales it. Left out on purpose: frequencies that change with the length of a sequence (`dynamic` and
`longrope` beyond the positions that a model was first made for).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from rs_aligner.model.architecture import Rope


class Rotary(RotaryEmbedding):
    """What Megatron's model asks for positions: here for cosines and sines, not for angles.

    Args:
        ropes: the positions that the model's layers have, each once.
        dim: of a head.
        device: where to.
    """

    def __init__(self, ropes: Sequence[Rope], dim: int, device: torch.device) -> None:
        super().__init__(dim, 1.0, use_cpu_initialization=True)
        self.count = len(ropes)
        turned = [(rope.turned or dim) // 2 for rope in ropes]
        # Of each, the pairs that are turned and those that are not, with what they are multiplied by.
        self._sizes = [size for pairs in turned for size in (pairs, dim // 2 - pairs)]
        self._factors = [factor for rope in ropes for factor in (rope.attention_factor, 1.0)]
        self.inv_freq = torch.cat([frequencies(rope, dim) for rope in ropes]).to(device)
        self._table = self.inv_freq.new_empty(0)

    def get_cos_sin(self, max_seq_len: int, offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions, float32 `[max_seq_len, R * dim / 2]`, times the attention's factor.

        Source: Su et al., "RoFormer" (2021), equation 34. Queries and keys both have the factor, so scores
        have its square, 1/t in Peng et al., "YaRN" (2023), arXiv 2309.00071.
        """
        angles = self.get_freqs_non_repeated(max_seq_len, offset).split(self._sizes, -1)
        each = [*zip(angles, self._factors, strict=True)]
        cos, sin = ([turn(x) * by for x, by in each] for turn in (torch.cos, torch.sin))
        return torch.cat(cos, -1), torch.cat(sin, -1)

    def forward(self, max_seq_len: int, *_: Any, **__: Any) -> torch.Tensor:
        """Cosines and sines side by side, of one of the R after the other: `[S, 1, 1, R * dim]`.

        The longest table so far is kept.
        """
        if len(self._table) < max_seq_len:
            each = [x.unflatten(-1, (self.count, -1)) for x in self.get_cos_sin(max_seq_len)]
            self._table = torch.cat(each, dim=-1).flatten(1)[:, None, None]
        return self._table[:max_seq_len]


def frequencies(rope: Rope, dim: int) -> torch.Tensor:
    """Radians a position of each pair of a head's `dim` numbers: float32 `[dim / 2]`.

    Scaling keeps a share of each frequency as it was, and lowers the rest by `factor`: "NTK-by-parts" in Peng
    et al., "YaRN" (2023), arXiv 2309.00071. Kinds differ in that share alone (`KEPT`).
    """
    turned = rope.turned or dim
    plain = 1.0 / (rope.theta ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned))
    kept = KEPT[rope.scaling](rope, plain)
    scaled = (1 - kept) * plain / rope.factor + kept * plain
    if rope.divisors:
        scaled = scaled / torch.tensor(rope.divisors)
    return torch.cat([scaled, scaled.new_zeros((dim - turned) // 2)])


def order_of_pairs(rope: Rope, dim: int) -> list[int] | None:
    """A head's numbers in an order in which pairs stand half a head apart; None where they do.

    Of a head that is turned in part the pairs of the first `turned` numbers stand half of these apart.
    Queries and keys in another order have the same products. What is not turned is in pairs without a
    frequency.
    """
    if rope.turned is None or rope.turned == dim:
        return None
    half, rest = rope.turned // 2, [*range(rope.turned, dim)]
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    return [*range(half), *first, *range(half, rope.turned), *second]


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
