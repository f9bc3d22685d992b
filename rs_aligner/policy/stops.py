"""Between which micro-batches an optimizer step may be stopped, the same on every rank.

Left out on purpose: who asks for a stop, and how much time is left (`stopping`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rs_aligner import stopping
from rs_aligner.model.runtime import Runtime

AGREE_EVERY = 8  # micro-batches between two agreements, where there are several ranks

Batch = TypeVar("Batch")


def stoppable(batches: Sequence[Batch], runtime: Runtime, *, moved: bool) -> Iterator[Batch]:
    """The micro-batches, until the ranks are to stop; they agree before the first and between some.

    The stages of a pipeline agree before it begins only: they are at different micro-batches, and a later
    stage comes to its first one when the earlier one is through with it.

    Args:
        batches: of this replica.
        runtime: of this rank.
        moved: whether the weights are other than behind the last finished step of the loop: a stop then ends
            this step only where no time is left to finish and to save it.

    Raises:
        Stopped: one of the ranks is to stop; on every rank. The gradient so far is worth nothing.
    """
    every = len(batches) if runtime.pp_size > 1 else AGREE_EVERY if runtime.world_size > 1 else 1
    _stop_if_asked(runtime, moved)

    def others() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number > 0 and number % every == 0:
                _stop_if_asked(runtime, moved)
            yield batch

    return others()


def _stop_if_asked(runtime: Runtime, moved: bool) -> None:
    wish = stopping.poll() and not (moved and stopping.can_save())
    if runtime.any_rank(wish):
        raise stopping.Stopped(stopping.reason(), moved=moved)
