"""Rows that pass through the model in a line, one behind the other, without padding between them.

A micro-batch is one line of all its tokens: products, norms and activations see no padding, and attention
keeps to the rows' boundaries (`attention.py`). Megatron hands the line on from layer to layer as its packed
sequences; the output layer works at the places that are asked for, and nowhere else (`build.py`). Left out on
purpose: a line that is cut over ranks by rows (context parallelism).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams


class Rows(NamedTuple):
    """Where rows lie: int64 `starts` and `lengths`, `[B]`; a row's tokens are `step` places apart."""

    starts: torch.Tensor
    lengths: torch.Tensor
    step: int
    longest: int


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of each token's angles, `[S, head_dim / 2]` each."""


@dataclass
class Line(PackedSeqParams):
    """The boundaries of a line's rows.

    Attributes:
        lengths: of the rows, in order; what fills the line up is a row, too. They add up to the line.
        places: int64 `[N]`, the places of the line at which the output layer is asked for anything; None for
            all of them.
    """

    lengths: tuple[int, ...] = ()
    places: torch.Tensor | None = None
    _rotations: dict[tuple[torch.dtype, int], Rotation] = field(default_factory=dict)
    _ends: torch.Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], places: torch.Tensor | None = None) -> Line:
        """A line of rows of such lengths."""
        longest = max(lengths)
        return cls(
            qkv_format="thd",
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            lengths=tuple(lengths),
            places=places,
        )

    @cached_property
    def rows(self) -> Rows:
        """The boundaries as tensors."""
        lengths_B = torch.tensor(self.lengths)
        return Rows(lengths_B.cumsum(0) - lengths_B, lengths_B, 1, max(self.lengths))

    def ends(self, device: torch.device) -> torch.Tensor:
        """Where rows begin and the last one ends, made once for all layers: int32 `[B + 1]`."""
        if self._ends is None:
            starts = [*self.rows.starts.tolist(), sum(self.lengths)]
            self._ends = torch.tensor(starts, dtype=torch.int32, device=device)
        return self._ends

    def positions(self, device: torch.device) -> torch.Tensor:
        """The place of each token in its row: int64 `[T]`."""
        rows = self.rows
        starts_S = rows.starts.repeat_interleave(rows.lengths)
        return (torch.arange(len(starts_S)) - starts_S).to(device)

    def rotation(self, table: torch.Tensor, dtype: torch.dtype, which: int = 0) -> Rotation:
        """Cosines and sines along the line, made once for all layers that have the same.

        Args:
            table: of all positions up to the longest row's last, as `Rotary` has them: `[S, 1, 1, head_dim]`.
            dtype: of queries and keys.
            which: of the model's tables.
        """
        if (dtype, which) not in self._rotations:
            cos, sin = rotation_of(table, dtype)
            positions = self.positions(table.device)
            self._rotations[dtype, which] = cos[positions], sin[positions]
        return self._rotations[dtype, which]


def rows_side_by_side(length: int, count: int) -> Rows:
    """The rows of a tensor `[length, count, ...]`."""
    return Rows(torch.arange(count), torch.full((count,), length), count, length)


def rotation_of(table: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """What lies side by side in `Rotary`'s table, `[S, 1, 1, head_dim]`: `[S, head_dim / 2]` each."""
    cos, sin = table[:, 0, 0].to(dtype).chunk(2, dim=-1)
    return cos, sin
