"""Copies of tensors in the CPU's memory, laid side by side in slabs of one size.

Pinned memory is copied from and to a GPU several times as fast, and torch rounds each piece of it up to a
power of two: pinned one by one, the weights of a model would take up to twice their size. Left out on
purpose: copying beside computation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SLAB = 1 << 26  # bytes that are pinned at once: a power of two, of which only the last is not filled
_ALIGNED = 16  # bytes: where a copy may begin, for any type


class Copy:
    """A copy of a tensor, perhaps in several pieces.

    Args:
        pieces: flat, of the tensor's type, together as long as it.
    """

    def __init__(self, pieces: Sequence[torch.Tensor]) -> None:
        self.pieces = list(pieces)

    def save(self, tensor: torch.Tensor) -> None:
        """Make this the copy of the tensor as it is now."""
        for piece, part in self._beside(tensor):
            piece.copy_(part)

    def restore(self, tensor: torch.Tensor) -> None:
        """Give the tensor what is in the copy."""
        for piece, part in self._beside(tensor):
            part.copy_(piece)

    def swap(self, tensor: torch.Tensor) -> None:
        """Let copy and tensor change places, bit for bit."""
        for piece, part in self._beside(tensor):
            aside = part.clone()
            part.copy_(piece)
            piece.copy_(aside)

    def _beside(self, tensor: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = tensor.view(-1).split([len(piece) for piece in self.pieces])
        return list(zip(self.pieces, parts, strict=True))


def copies_on_device(tensors: Sequence[torch.Tensor]) -> list[Copy]:
    """A copy of each tensor where it is."""
    return [Copy([tensor.clone().view(-1)]) for tensor in tensors]


def room_on_host(tensors: Sequence[torch.Tensor]) -> list[Copy]:
    """Room for a copy of each tensor in the CPU's memory, pinned if they are a GPU's; empty."""
    left = sum(-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors)
    pinned = any(tensor.is_cuda for tensor in tensors)
    slab, begin = torch.empty(0, dtype=torch.uint8), 0
    found: list[Copy] = []
    for tensor in tensors:
        pieces, missing = [], tensor.nbytes
        while missing:
            if begin >= len(slab):
                slab = torch.empty(min(left, SLAB), dtype=torch.uint8, pin_memory=pinned)
                left, begin = left - len(slab), 0
            size = min(missing, len(slab) - begin)
            pieces.append(slab[begin : begin + size].view(tensor.dtype))
            begin, missing = begin + -(-size // _ALIGNED) * _ALIGNED, missing - size
        found.append(Copy(pieces))
    return found
