"""Tells a hang: where nothing gets on for long, the stacks of all threads go to the log.

A hang is told, and not ended: what waits for other ranks ends by its own time limit
(`trainer.timeout_minutes`), which is longer, so that by then the stacks of all ranks are in the log. SIGQUIT
shows them at any time. Left out on purpose: telling a hang from work that is slow; the limit is generous.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator

from rs_aligner import progress

LOOKS = 20  # within a limit
MOST_SECONDS = 5.0  # between looks


def show_stacks_on_quit() -> None:
    """Let SIGQUIT write the stacks of all threads to the standard error; the process goes on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no such signal, or no such file
        faulthandler.register(signal.SIGQUIT, all_threads=True)


@contextlib.contextmanager
def watching(limit: float, who: str) -> Iterator[None]:
    """Write the stacks of all threads to the standard error where nothing has got on for `limit` seconds.

    Args:
        limit: seconds.
        who: is called so: the rank and its host.
    """
    over = threading.Event()

    def watch() -> None:
        has_told = False
        while not over.wait(min(limit / LOOKS, MOST_SECONDS)):
            seconds = progress.seconds_since()
            if seconds < limit:
                has_told = False
            elif not has_told:
                has_told = True
                doing = progress.current()
                print(
                    f"{who}: nothing has got on for {seconds:.0f} s ({doing.phase}, step {doing.step}); "
                    "the stacks of all its threads:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(sys.stderr, all_threads=True)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
