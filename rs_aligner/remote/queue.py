"""Rows that wait to be sent: who hands them in waits while there are too many, who sends them takes batches.

A batch leaves when it is full or when its oldest row has waited long enough. Where more than a batch waits,
the oldest row leaves with those that are nearest to it in length: a server pads a batch to its longest row.
The oldest always goes first, so no row waits for ever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Generic, TypeVar

from rs_aligner import stopping

Row = TypeVar("Row")
Result = TypeVar("Result")

# The oldest rows, in batches, among which neighbours are looked for: more costs time and finds little.
_WINDOW = 8


@dataclass(slots=True, eq=False)
class Waiting(Generic[Row, Result]):
    """A row on its way.

    Attributes:
        row: as it will be sent.
        length: what decides its neighbours in a batch, in tokens.
        due: when it is to be sent at the latest, on the monotonic clock.
        id: unique among all rows that are under way.
        future: what its sender waits for.
    """

    row: Row
    length: int
    due: float
    id: bytes
    future: Future[Result] = field(default_factory=Future)

    def resolve(self, result: Result) -> None:
        """Let this be its result, unless somebody was first: who stopped, or a caller who cancelled."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(result)


class RowQueue(Generic[Row, Result]):
    """Rows by age, and how they are taken.

    Args:
        batch_size: rows of a batch at most.
        room: rows that may wait.
    """

    def __init__(self, batch_size: int, room: int) -> None:
        self._batch_size = batch_size
        self._room = room
        self._rows: list[Waiting[Row, Result]] = []
        self._closed = False
        lock = threading.Lock()
        self._has_work = threading.Condition(lock)  # there is something to take, or a clock to watch
        self._has_room = threading.Condition(lock)

    def put(self, waiting: Waiting[Row, Result]) -> bool:
        """Hand in a row, waiting for room, but not once a stop is asked for; False if the queue is closed."""
        with self._has_room:
            while not self._closed and len(self._rows) >= self._room and not stopping.is_asked():
                self._has_room.wait(stopping.LOOK_SECONDS)
            if self._closed:
                return False
            self._rows.append(waiting)
            # One taker watches the first row's clock; the others need not wake before a batch is full.
            if len(self._rows) == 1 or len(self._rows) >= self._batch_size:
                self._has_work.notify()
        return True

    def take(self) -> list[Waiting[Row, Result]]:
        """Wait for a full batch, or one whose oldest row is due. Empty once the queue is closed."""
        with self._has_work:
            while not self._closed:
                if not self._rows:
                    self._has_work.wait()
                    continue
                time_left = self._rows[0].due - time.monotonic()
                if len(self._rows) < self._batch_size and time_left > 0:
                    self._has_work.wait(time_left)
                    continue
                batch = self._cut()
                self._has_room.notify_all()
                if self._rows:
                    self._has_work.notify()  # somebody has to watch the clock of what is left
                batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
                if batch:
                    return batch
            return []

    def take_now(self, *, full: bool) -> list[Waiting[Row, Result]]:
        """A batch without waiting for one: a full one, or whatever is there. Empty where there is none."""
        with self._has_work:
            while self._rows and (not full or len(self._rows) >= self._batch_size):
                batch = self._cut()
                self._has_room.notify_all()
                batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
                if batch:
                    return batch
            return []

    def flush(self) -> None:
        """Let everything that waits be taken at once, in batches that may not be full."""
        with self._has_work:
            for waiting in self._rows:
                waiting.due = 0.0
            self._has_work.notify_all()

    def close(self) -> list[Waiting[Row, Result]]:
        """Let nobody wait any more; returns the rows that were not taken."""
        with self._has_work:
            self._closed = True
            left, self._rows = self._rows, []
            self._has_work.notify_all()
            self._has_room.notify_all()
        return left

    def _cut(self) -> list[Waiting[Row, Result]]:
        """Take the oldest row out, with its neighbours in length."""
        if len(self._rows) <= self._batch_size:
            batch, self._rows = self._rows, []
            return batch
        length, window = self._rows[0].length, _WINDOW * self._batch_size
        oldest = self._rows[:window]
        batch = nsmallest(self._batch_size, oldest, key=lambda waiting: abs(waiting.length - length))
        taken = set(map(id, batch))
        self._rows[:window] = [waiting for waiting in oldest if id(waiting) not in taken]
        return batch
