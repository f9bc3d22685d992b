"""A server that is asked: its address, how it has answered so far, and what servers of its kind are called.

Left out on purpose: which of several is asked, and who comes back when (`endpoints.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Link = TypeVar("Link")
"""A conversation with a server, of whatever kind."""


@dataclass(frozen=True, slots=True)
class Role:
    """What servers are there for, in words for messages.

    Attributes:
        name: what one of them is called.
        does: what it does, in the third person.
    """

    name: str
    does: str


SERVER = Role("server", "answers")


class Endpoint(Generic[Link]):
    """One server. What changes is guarded by the pool's lock.

    Args:
        url: its address, to be shown.
        connect: begins a conversation for one request.
    """

    def __init__(self, url: str, connect: Callable[[], Link]) -> None:
        self.url = url
        self.connect = connect
        self.in_flight = 0
        self.seconds_per_row: float | None = None
        self.failures = 0  # in a row
        self.times_out = 0  # in a row, without an answer in between
        self.why_out: str | None = "it has not answered yet"  # None: it can be asked
        self.hopeless: Exception | None = None  # why waiting will not help, when it is opened or renewed
        self.trials = 0  # that are over
        self.is_due = False  # for a trial at once, however long it has been out

    def load(self) -> tuple[float, int]:
        """What orders servers: the time that another request would take there, as far as it is known."""
        return ((self.in_flight + 1) * (self.seconds_per_row or 0.0), self.in_flight)
