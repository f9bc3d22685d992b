"""Tensors in the CPU's memory: copies of them, and what a GPU's make room for, in slabs of one size.

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


def is_apart(device: torch.device) -> bool:
    """Whether a device's memory is another than the CPU's."""
    return device.type == "cuda"


class Vacated:
    """Tensors whose memory can be given up for a while; what was in it is lost.

    The tensors stay the objects that they are, on their device and with their shapes, and so does every view
    of them; only the storage below them is emptied. Nothing may read or write them meanwhile.

    Args:
        tensors: contiguous; views of one storage leave and come back together.

    Attributes:
        is_away: whether their memory is given up.
        nbytes: of it.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)
        storages = {one.untyped_storage()._cdata: one.untyped_storage() for one in tensors}
        self._storages = list(storages.values())
        self._sizes = [storage.nbytes() for storage in self._storages]
        self.nbytes, self.is_away = sum(self._sizes), False

    def leave(self) -> None:
        """Give the memory up; does nothing where it is."""
        if not self.is_away:
            for storage in self._storages:
                storage.resize_(0)
        self.is_away = True

    def come_back(self) -> None:
        """Have memory again, with anything in it; does nothing where there is."""
        if self.is_away:
            for storage, size in zip(self._storages, self._sizes, strict=True):
                storage.resize_(size)
        self.is_away = False


class Aside(Vacated):
    """Tensors that can wait in the CPU's memory, and come back with the same bits.

    Args:
        tensors: as for `Vacated`, on one device, at least one.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(tensors)
        device = self.tensors[0].device
        self._bytes = [
            torch.empty(0, dtype=torch.uint8, device=device).set_(storage) for storage in self._storages
        ]
        self._copies = room_on_host(self._bytes)
        places = {storage._cdata: place for place, storage in enumerate(self._storages)}
        self._place_of = {id(one): places[one.untyped_storage()._cdata] for one in self.tensors}
        self._is_copied = False

    def leave(self, *, is_changed: bool = True) -> None:
        """Copy the tensors, and give their memory up.

        Args:
            is_changed: whether they are other than when they came back; else there is a copy already.
        """
        if self.is_away:
            return
        if is_changed or not self._is_copied:
            for copy, content in zip(self._copies, self._bytes, strict=True):
                copy.save(content)
        self._is_copied = True
        super().leave()

    def come_back(self) -> None:
        """Have the tensors again as they were."""
        if not self.is_away:
            return
        super().come_back()
        for copy, content in zip(self._copies, self._bytes, strict=True):
            copy.restore(content)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether it is one of the tensors."""
        return id(tensor) in self._place_of

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """What one of the tensors holds, in the CPU's memory, while it is away."""
        found = torch.empty_like(tensor, device="cpu")
        self._copy_of(tensor).restore(_as_bytes(found))
        return found

    def write(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Let one of the tensors hold other values, while it is away."""
        same = values.to("cpu", tensor.dtype).contiguous()
        self._copy_of(tensor).save(_as_bytes(same))

    def _copy_of(self, tensor: torch.Tensor) -> Copy:
        assert self.is_away, "the tensors are in their own memory"
        place = self._place_of[id(tensor)]
        assert tensor.nbytes == self._sizes[place], "it shares its memory with others"
        return self._copies[place]


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
