"""Whether a decoder is to stop between two tokens; the same on all ranks of a replica, which decode in step.

Replicas agree behind their shares (`trainers.round`). Left out on purpose: rollouts that were cut; nothing of
them is handed on.
"""

from __future__ import annotations

from rs_aligner import stopping
from rs_aligner.model.runtime import Runtime

AGREE_EVERY = 16  # tokens


class StopPoll:
    """Asked between tokens; once it says yes, it stays with it.

    Args:
        runtime: this rank's place.
        every: times that it is asked between two agreements, where several ranks hold a replica.
    """

    def __init__(self, runtime: Runtime, *, every: int = AGREE_EVERY) -> None:
        self._runtime, self._every = runtime, every
        self._is_alone = runtime.tp_size == runtime.pp_size == 1
        self._asked = 0
        self._stops = False

    def __call__(self) -> bool:
        wish = stopping.poll()
        if self._is_alone or self._stops:
            return self._stops or wish
        if self._asked % self._every == 0:
            self._stops = self._runtime.any_of_replica(wish)
            if self._stops and not wish:  # this rank may speak for the replica, and has to know
                stopping.ask("another rank of the replica was asked")
        self._asked += 1
        return self._stops
