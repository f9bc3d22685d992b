"""A user's function that sets an alarm, and the process in which it does so.

`signal.alarm` with a handler that raises is how a function gives itself a time limit (`math_verify` does). It
works in the main thread only, and the alarm is the process's: one that a function leaves behind would end a
training run seconds later, at a place that has nothing to do with it. Left out on purpose: other signals.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Iterator, Sequence

from rs_aligner.reward.judges.base import JudgeFunction, Metadata, Value


def keeping_alarm(function: JudgeFunction) -> JudgeFunction:
    """A function after whose calls SIGALRM's handler and timer are what they were before."""

    @functools.wraps(function)
    def kept(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> Sequence[Value]:
        with alarm_kept():
            return function(prompts, responses, metadata)

    return kept


@contextlib.contextmanager
def alarm_kept() -> Iterator[None]:
    """Put SIGALRM's handler and timer back at the end.

    In another thread than the main one, where neither can be changed, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGALRM)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    began = time.monotonic()
    try:
        yield
    finally:
        passed = time.monotonic() - began
        if not left:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif passed < left:  # the caller's own one goes on as if nothing had been
            signal.setitimer(signal.ITIMER_REAL, left - passed, interval)
        if handler is not None and signal.getsignal(signal.SIGALRM) is not handler:  # None: not Python's
            signal.signal(signal.SIGALRM, handler)
