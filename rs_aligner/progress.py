"""What this process is doing, and when it last got on: for `status.json`, and for who watches for hangs.

Loops say it in passing. Left out on purpose: figures of a step (`record.metrics`), and what is made of all
this.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal

Phase = Literal[
    "starting",
    "sampling",
    "scoring",
    "training",
    "validating",
    "saving",
    "exporting",
    "finished",
    "stopped",
    "failed",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run is.

    Attributes:
        phase: what is being done.
        step: of the loop, counted from 1; 0 before the first.
        steps: of the whole run; None before that is known.
    """

    phase: Phase = "starting"
    step: int = 0
    steps: int | None = None


class _State:
    def __init__(self) -> None:
        self.now, self.noted = Progress(), time.monotonic()


_state = _State()
changed = threading.Event()
"""Set where the phase or the step has changed; whoever writes that down clears it."""


def enter(phase: Phase, *, step: int | None = None, steps: int | None = None) -> None:
    """Say what is being done now; the step and the number of steps stay unless they are given."""
    before = _state.now
    _state.now = Progress(
        phase, before.step if step is None else step, before.steps if steps is None else steps
    )
    note()
    if _state.now != before:
        changed.set()


def begin() -> None:
    """A run begins in this process."""
    _state.now = Progress()
    note()
    changed.set()


def note() -> None:
    """Something got on."""
    _state.noted = time.monotonic()


def current() -> Progress:
    """What is being done."""
    return _state.now


def seconds_since() -> float:
    """Since something last got on."""
    return time.monotonic() - _state.noted
