"""What this process is doing, and when it last got on: for `status.json`, a view, who watches for hangs.

Loops say it in passing. Left out on purpose: figures of a step (`record.metrics`), and what is made of all
this.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Counts:
    """How many answers this process has sampled and had judged.

    Attributes:
        total: that the round is to sample, over all replicas; 0 before the first round.
        sampled, judged, failed: of the round, by this process; what failed is judged, too.
        seconds: from the beginning of the round to the last answer of the judge.
        all_judged, all_failed: of all rounds.
    """

    total: int = 0
    sampled: int = 0
    judged: int = 0
    failed: int = 0
    seconds: float = 0.0
    all_judged: int = 0
    all_failed: int = 0


class _State:
    def __init__(self) -> None:
        self.now, self.noted = Progress(), time.monotonic()
        self.counts, self.round_began, self.counting = Counts(), 0.0, threading.Lock()
        self.bars = True


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


def begin_round(total: int) -> None:
    """So many answers are going to be sampled, and judged, by all replicas."""
    with _state.counting:
        before, _state.round_began = _state.counts, time.monotonic()
        _state.counts = Counts(total, all_judged=before.all_judged, all_failed=before.all_failed)


def sampled() -> None:
    """An answer was sampled."""
    with _state.counting:
        _state.counts = replace(_state.counts, sampled=_state.counts.sampled + 1)


def judged(*, failed: bool) -> None:
    """The judge has answered; from any thread."""
    with _state.counting:
        now = _state.counts
        _state.counts = replace(
            now,
            judged=now.judged + 1,
            failed=now.failed + failed,
            seconds=time.monotonic() - _state.round_began,
            all_judged=now.all_judged + 1,
            all_failed=now.all_failed + failed,
        )


def counts() -> Counts:
    """How many answers were sampled and judged."""
    return _state.counts


def shows_bars() -> bool:
    """Whether a bar may be shown on a terminal."""
    return _state.bars


@contextlib.contextmanager
def bars(wanted: bool) -> Iterator[None]:
    """Whether bars may be shown, as long as the block lasts; not where a block around it forbids it."""
    before, _state.bars = _state.bars, _state.bars and wanted
    try:
        yield
    finally:
        _state.bars = before
