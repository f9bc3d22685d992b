"""How a Megatron parameter is cut from Hugging Face tensors for a rank, and put together again.

Torch is imported when the first tensor is there: a folder is checked against a family's tables before
anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = Sequence["torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a Megatron parameter is cut: `cut(hf, rank, parts)` and its inverse `join(shards)`."""

    cut: Callable[[Tensors, int, int], torch.Tensor]
    join: Callable[[Tensors], list[torch.Tensor]]


def _cat(tensors: Tensors, dim: int = 0) -> torch.Tensor:
    import torch

    return torch.cat(list(tensors), dim)


REPLICATED = Layout(lambda hf, rank, parts: hf[0], lambda shards: [shards[0]])
ROWS = Layout(lambda hf, rank, parts: hf[0].chunk(parts, 0)[rank], lambda shards: [_cat(shards, 0)])
COLUMNS = Layout(lambda hf, rank, parts: hf[0].chunk(parts, 1)[rank], lambda shards: [_cat(shards, 1)])
GATED = Layout(
    lambda hf, rank, parts: _cat([tensor.chunk(parts, 0)[rank] for tensor in hf]),
    lambda shards: [_cat(part) for part in zip(*(shard.chunk(2, 0) for shard in shards), strict=True)],
)


def grouped_qkv(num_heads: int, num_kv_heads: int, head_dim: int) -> Layout:
    """Query, key and value rows, interleaved by group: each group's queries, then its key and value."""
    sizes = [num_heads // num_kv_heads * head_dim, head_dim, head_dim]

    def cut(hf: Tensors, rank: int, parts: int) -> torch.Tensor:
        grouped = [t.reshape(num_kv_heads, size, *t.shape[1:]) for t, size in zip(hf, sizes, strict=True)]
        return _cat(grouped, 1).chunk(parts, 0)[rank].flatten(0, 1)

    def join(shards: Tensors) -> list[torch.Tensor]:
        whole = _cat(shards)
        grouped = whole.reshape(num_kv_heads, sum(sizes), *whole.shape[1:])
        return [part.flatten(0, 1) for part in grouped.split(sizes, 1)]

    return Layout(cut, join)
