"""When the next request may begin: so many a minute, and not before the server wants to be asked again."""

from __future__ import annotations

import math
import threading
import time

from rs_aligner.remote.errors import TransportError


class Pace:
    """Lets requests begin, one after the other. Thread-safe.

    Args:
        per_minute: how many may begin in a minute, evenly spaced; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._between = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = -math.inf  # on the monotonic clock
        self._closed = False
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Wait for one's turn.

        Raises:
            TransportError: there will be no turn any more.
        """
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._between
                    return
                self._changed.wait(self._next - now)
        raise TransportError("the judge was closed", "unreachable")

    def hold(self, seconds: float) -> None:
        """Let nothing begin for so long."""
        with self._changed:
            self._next = max(self._next, time.monotonic() + seconds)

    def close(self) -> None:
        """Let nobody wait, and nothing begin."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
