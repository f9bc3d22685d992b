"""How a Megatron parameter is cut from Hugging Face tensors for a rank, and put together again.

A layout says first which part of each tensor a rank needs, so that no more than that is read from a file.
Torch is imported when the first tensor is there: a folder is checked against a family's tables before
anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = Sequence["torch.Tensor"]
Place = tuple[slice, ...]
"""A part of a tensor, a slice a dimension; those left out are whole."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a Megatron parameter is cut.

    Attributes:
        places: `f(shape, rank, parts)`: which parts of a Hugging Face tensor of this shape a rank needs.
        fuse: the parameter, made of those parts of its tensors, in their order.
        join: from the ranks' parameters, in their order, the tensors as they were.
        groups: in how many groups the rows of several tensors are interleaved; 1 where they stand one after
            the other.
        blocks: rows of each of several matrices that are below each other in one tensor; none where each has
            a tensor of its own.
        is_transposed: whether a tensor has inputs by outputs.
    """

    places: Callable[[Sequence[int], int, int], Sequence[Place]]
    fuse: Callable[[Tensors], torch.Tensor]
    join: Callable[[Tensors], list[torch.Tensor]]
    groups: int = 1
    blocks: tuple[int, ...] = ()
    is_transposed: bool = False


def share(size: int, rank: int, parts: int, start: int = 0) -> slice:
    """A rank's share of so many rows behind `start`."""
    each = size // parts
    return slice(start + rank * each, start + (rank + 1) * each)


def _whole(shape: Sequence[int], rank: int, parts: int) -> list[Place]:
    return [()]


def _rows(shape: Sequence[int], rank: int, parts: int) -> list[Place]:
    return [(share(shape[0], rank, parts),)]


def _columns(shape: Sequence[int], rank: int, parts: int) -> list[Place]:
    return [(slice(None), share(shape[1], rank, parts))]


def _cat(tensors: Tensors, dim: int = 0) -> torch.Tensor:
    import torch

    return torch.cat(list(tensors), dim)


def _only(tensors: Tensors) -> torch.Tensor:
    return tensors[0]


REPLICATED = Layout(_whole, _only, lambda shards: [shards[0]])
ROWS = Layout(_rows, _only, lambda shards: [_cat(shards, 0)])
COLUMNS = Layout(_columns, _only, lambda shards: [_cat(shards, 1)])
GATED = Layout(
    _rows,
    _cat,
    lambda shards: [_cat(part) for part in zip(*(shard.chunk(2, 0) for shard in shards), strict=True)],
)


def grouped_qkv(num_heads: int, num_kv_heads: int, head_dim: int) -> Layout:
    """Query, key and value rows, interleaved by group: each group's queries, then its key and value.

    A rank has whole groups, so its rows lie side by side in each of the three tensors.
    """
    sizes = [num_heads // num_kv_heads * head_dim, head_dim, head_dim]

    def fuse(hf: Tensors) -> torch.Tensor:
        grouped = [t.reshape(-1, size, *t.shape[1:]) for t, size in zip(hf, sizes, strict=True)]
        return _cat(grouped, 1).flatten(0, 1)

    def join(shards: Tensors) -> list[torch.Tensor]:
        whole = _cat(shards)
        grouped = whole.reshape(num_kv_heads, sum(sizes), *whole.shape[1:])
        return [part.flatten(0, 1) for part in grouped.split(sizes, 1)]

    return Layout(_rows, fuse, join, num_kv_heads)


def stacked(apart: Layout, rows: Sequence[int]) -> Layout:
    """The layout of several tensors, of so many rows each, that are below each other in one."""
    starts = [0, *accumulate(rows)][:-1]

    def places(shape: Sequence[int], rank: int, parts: int) -> list[Place]:
        return [(share(size, rank, parts, start),) for size, start in zip(rows, starts, strict=True)]

    def join(shards: Tensors) -> list[torch.Tensor]:
        return [_cat(apart.join(shards))]

    return replace(apart, places=places, join=join, blocks=tuple(rows))


def transposed(layout: Layout) -> Layout:
    """The layout of matrices that their file has as inputs by outputs."""

    def places(shape: Sequence[int], rank: int, parts: int) -> list[Place]:
        found = layout.places(shape[::-1], rank, parts)
        return [(*[slice(None)] * (2 - len(place)), *place[::-1]) for place in found]

    def fuse(tensors: Tensors) -> torch.Tensor:
        return layout.fuse([tensor.t() for tensor in tensors])

    def join(shards: Tensors) -> list[torch.Tensor]:
        return [tensor.t() for tensor in layout.join(shards)]

    return replace(layout, places=places, fuse=fuse, join=join, is_transposed=True)
