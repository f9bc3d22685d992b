"""How much memory torch's allocator hands out, counted and not timed.

By torch's profiler, which notes each allocation and each release on the CPU, whoever asks for it. Left out on
purpose: memory that is not torch's (the decoder's kernels say their own), and what the system makes of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.profiler import profile


@dataclass
class Allocated:
    """Bytes.

    Attributes:
        kept: more that are held at the end than at the beginning.
        most: more that were held at once than at the beginning.
    """

    kept: int = 0
    most: int = 0


@contextmanager
def allocated() -> Iterator[Allocated]:
    """Count what is allocated in the block; the result is there when it is left."""
    found = Allocated()
    with profile(profile_memory=True) as profiler:
        yield found
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        found.kept += event.nbytes()
        found.most = max(found.most, found.kept)


def live_tensors() -> dict[int, torch.Tensor]:
    """All plain tensors that Python can see, one for each piece of memory; those that are kept stay there.

    Other kinds (fake ones, those in shards) have no memory, or are made of plain ones.
    """
    gc.collect()  # what lies in circles is not held on purpose
    found = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return {at: one for one in found if (at := address(one)) is not None}


def address(tensor: torch.Tensor) -> int | None:
    """Where a tensor lies; None for one that lies nowhere, as those that torch.compile traces with."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except RuntimeError as problem:
        # A functional one, or one that is not defined (which torch 2.7 leaves behind).
        if not any(sign in str(problem) for sign in ("invalid python storage", "UndefinedTensorImpl")):
            raise
        return None


def bytes_beside(before: Mapping[int, torch.Tensor]) -> int:
    """Bytes of all tensors that were not among those of before."""
    return sum(one.untyped_storage().nbytes() for at, one in live_tensors().items() if at not in before)


def counted(action: Callable[[], object]) -> Allocated:
    """What is allocated by an action."""
    with allocated() as found:
        action()
    return found
