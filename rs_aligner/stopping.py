"""Whether this process is to stop, why, and how much time is left: noted by signal handlers, asked by loops.

A handler notes the wish and does nothing else. Loops ask at their safe points (`poll`): between tokens,
between micro-batches, while waiting for a judge. What they then do, and how ranks agree on it, is their
business. There are three ways to ask for a stop: a signal, a file named `stop` in the run's folder (a signal
may reach only one rank), and a time limit that is nearly reached. The state is the process's, as signals are.

Left out on purpose: interrupting anything.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from rs_aligner import progress
from rs_aligner.exit_status import TO_BE_CONTINUED

_logger = logging.getLogger("rs_aligner")

MARGIN = (
    1.5  # something is begun only if this many times the longest of its kind so far fit into the time left
)
LOOK_SECONDS = 1.0  # between looks for the stop file
UNMEASURED_SHARE, UNMEASURED_SECONDS = 0.1, 60.0  # of a time limit, kept for a save while none was measured
STARTED = "RS_ALIGNER_STARTED"  # set by our launcher: when it was started, in seconds since 1970
STOP_FILE = "stop"


class Stopped(SystemExit):
    """A run has stopped at a safe point, to be continued; raised on every rank.

    Left alone it ends the process with status 75.

    Attributes:
        reason: who asked for it.
        moved: whether optimizer steps of a training step that is not finished have moved the weights.
    """

    def __init__(self, reason: str, *, moved: bool = False) -> None:
        super().__init__(reason)
        self.code = TO_BE_CONTINUED
        self.reason, self.moved = reason, moved

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class _Wish:
    reason: str
    until: float  # on the monotonic clock, when whoever asked loses patience
    is_interrupt: bool = False


class _State:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.wish: _Wish | None = None
        self.has_told = False
        self.limit = math.inf  # on the monotonic clock
        self.limit_name = ""
        self.unmeasured = 0.0  # seconds of the limit that are kept for a save
        self.longest_save: float | None = None
        self.file: Path | None = None
        self.is_first = self.tells_others = False
        self.stale: tuple[int, int] | None = None
        self.next_look = 0.0


_state = _State()


def ask(reason: str, *, within: float = math.inf) -> None:
    """Ask this process to stop, within so many seconds. The first wish stands, the shortest time counts."""
    _note(_Wish(reason, time.monotonic() + within))


def is_asked() -> bool:
    """Whether this process is to stop. Cheap enough to be asked between tokens."""
    state = _state
    if state.wish is None:
        now = time.monotonic()
        if now >= state.limit - _reserve():
            state.wish = _Wish(f"{state.limit_name} is nearly over", math.inf)
        elif now >= state.next_look:
            state.next_look = now + LOOK_SECONDS
            if state.file is not None and _identity(state.file) not in (None, state.stale):
                state.wish = _Wish(f"the file {state.file}", math.inf)
    if state.wish is None:
        return False
    if not state.has_told:
        _tell(state.wish)
    return True


def poll() -> bool:
    """As `is_asked`, by a loop that gets on: who watches for hangs sees it."""
    progress.note()
    return is_asked()


def reason() -> str:
    """Who asked."""
    return _state.wish.reason if _state.wish is not None else "another rank was asked"


def was_interrupted() -> bool:
    """Whether Ctrl-C asked."""
    return _state.wish is not None and _state.wish.is_interrupt


def seconds_left() -> float:
    """Until whoever asked loses patience, or the time limit is reached; infinite where nobody and none is."""
    until = _state.limit if _state.wish is None else min(_state.limit, _state.wish.until)
    return until - time.monotonic()


def note_save(seconds: float) -> None:
    """A checkpoint took so long; the longest one is what the next may take."""
    _state.longest_save = max(_state.longest_save or 0.0, seconds)


def longest_save() -> float:
    """Seconds of the longest checkpoint so far; 0 where there was none."""
    return _state.longest_save or 0.0


def can_save() -> bool:
    """Whether a checkpoint is likely to be written in the time left; the first one is tried."""
    return seconds_left() > MARGIN * longest_save()


def limit_name() -> str:
    """What sets the time limit, for messages."""
    return _state.limit_name


def limit(seconds: float | None, *, key: str, since: float) -> None:
    """Ask for a stop in good time before so many seconds have passed, or the Slurm job ends.

    Args:
        seconds: null for no limit but Slurm's.
        key: of the config, for messages.
        since: on the monotonic clock.
    """
    found = [(since + seconds, key)] if seconds is not None else []
    if (end := slurm_end()) is not None:
        found.append((end, "the time of the Slurm job"))
    _state.limit, _state.limit_name = min(found, default=(math.inf, ""))
    whole = _state.limit - since
    _state.unmeasured = min(UNMEASURED_SECONDS, UNMEASURED_SHARE * whole) if whole < math.inf else 0.0


def watch(folder: Path, *, is_first: bool, tells_others: bool) -> None:
    """Heed the file `stop` in a run's folder; one that lies there already, of an earlier start, says nothing.

    Args:
        folder: of the run.
        is_first: whether this is the first rank, which takes the file away when the run has stopped.
        tells_others: whether there are other ranks, for which the file is written when this one is asked.
    """
    file = folder / STOP_FILE
    _state.file, _state.stale = file, _identity(file)
    _state.is_first, _state.tells_others = is_first, tells_others


def process_started() -> float:
    """When this process, or the launcher of its ranks, was started, on the monotonic clock."""
    began = float(os.environ.get(STARTED) or psutil.Process().create_time())
    return time.monotonic() - max(time.time() - began, 0.0)


def slurm_end() -> float | None:
    """When Slurm ends the job, on the monotonic clock; None where there is no job, or Slurm does not tell."""
    try:
        end = float(os.environ["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        return None
    return time.monotonic() + end - time.time()


@contextlib.contextmanager
def signals(*, stop_within: float = math.inf, second_interrupt: Any = None) -> Iterator[None]:
    """Heed SIGTERM, SIGUSR1 and the first Ctrl-C; behind it everything is as it was, and no wish stands.

    Only the main thread may set handlers; elsewhere nothing is heeded but what is asked otherwise.

    Args:
        stop_within: seconds between SIGTERM and the supervisor's SIGKILL. SIGUSR1 leaves as much as a Slurm
            job has left, and without Slurm as much as SIGTERM. Ctrl-C leaves all the time.
        second_interrupt: what a second Ctrl-C does; None for what the first did before. Where it is given,
            this process is ours, and SIGTERM and SIGUSR1 are heeded whoever else handled them.
    """
    is_ours = second_interrupt is not None
    old: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            again = second_interrupt if is_ours else old[signal.SIGINT]
            signal.signal(number, signal.default_int_handler if again is None else again)
            _note(_Wish("Ctrl-C", math.inf, is_interrupt=True))
            return
        end = slurm_end() if number == signal.SIGUSR1 else None
        _note(_Wish(signal.Signals(number).name, now + stop_within if end is None else end))

    if threading.current_thread() is threading.main_thread():
        for heeded in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            there = signal.getsignal(heeded)  # what is ignored (nohup, a shell's `&`) stays so
            if there != signal.SIG_IGN and (is_ours or heeded == signal.SIGINT or there == signal.SIG_DFL):
                old[heeded] = signal.signal(heeded, handle)
    if is_ours:
        atexit.register(_ignore_signals)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])  # which our launcher has held back
    try:
        yield
    finally:
        for heeded, handler in old.items():
            signal.signal(heeded, signal.SIG_DFL if handler is None else handler)
        forget()


def forget() -> None:
    """Let no wish, limit or file stand; the file of this run goes."""
    if _state.is_first and _state.file is not None and _state.wish is not None:
        with contextlib.suppress(OSError):
            _state.file.unlink()
    _state.reset()


def _ignore_signals() -> None:
    """The status is known; the interpreter's own end, which takes a while, changes it no more."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _note(wish: _Wish) -> None:
    """The first wish stands; the shortest patience counts."""
    before = _state.wish
    if before is None:
        _state.wish = wish
    elif wish.until < before.until:
        _state.wish = _Wish(before.reason, wish.until, before.is_interrupt)


def _reserve() -> float:
    """Seconds before a time limit that are kept for a save."""
    if _state.longest_save is None:
        return _state.unmeasured
    return MARGIN * _state.longest_save


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells this file from one that comes later; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _tell(wish: _Wish) -> None:
    """Say so once, here and to the other ranks."""
    _state.has_told = True
    _logger.info("%s: stopping at the next safe point", wish.reason)
    if _state.tells_others and _state.file is not None:
        with contextlib.suppress(OSError):
            _state.file.touch()
