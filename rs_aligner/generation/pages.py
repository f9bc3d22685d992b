"""Memory for keys and values, in pages of 16 tokens: who has which, and what a rollout may come to need.

A rollout's pages are set aside for the worst case when it is admitted, so a long answer cannot run out of
memory; they are memory only once they are written. Full pages of a prompt are shared by its rollouts, what is
left of it on a last page is copied to each.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence

import numpy as np

from rs_aligner.generation.native import LANES

_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE: address space is no promise of memory


def pages_of(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // LANES)


class PagePool:
    """Pages of keys and values, `[layers, pages, kv_heads, 16 * head_dim]` each.

    Args:
        num_layers: of this rank.
        width: numbers of a token's keys in a layer, over this rank's heads.
        num_pages: how many there are.

    Attributes:
        size: how many there are.
    """

    def __init__(self, num_layers: int, width: int, num_pages: int) -> None:
        self.size = num_pages
        shape = (num_layers, num_pages, width * LANES)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        maps = [mmap.mmap(-1, max(1, 4 * int(np.prod(shape))), flags=flags) for _ in range(2)]
        for each in maps:
            each.madvise(mmap.MADV_HUGEPAGE)
        self.keys, self.values = (np.frombuffer(each, dtype=np.float32).reshape(shape) for each in maps)
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Pages for a new owner; neighbours where possible."""
        assert count <= len(self._free)
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """Pages of an owner that is done with them."""
        self._free.extend(reversed(pages))

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy pages, `(from, to)`."""
        source, target = (np.array(ids, dtype=np.int64) for ids in zip(*pairs, strict=True))
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]
