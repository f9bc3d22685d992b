"""Which worker gets which rows, how many at once, and what becomes of rows that cost a worker its life.

Rows go together as far as that has gone well: those that took too long together are tried alone, each by
whichever worker is free, so that one that hangs costs the others nothing but a worker's time. Which worker a
row goes to, and with which others, decides nothing but how long it takes. Left out on purpose: processes and
threads (`limit`, `worker`); this is bookkeeping under one lock.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.rollout import Score, ScoreFailure

# So many rows have to go well, one after another, for each row that is then asked for at once. A judge that
# hangs over one row in four is asked for one at a time, and one that hangs over one in 10,000 soon for all.
GOOD_ROWS = 32


@dataclass
class _Batch:
    """Rows that took too long together, and whether one of them did so alone."""

    size: int
    left: int
    is_guilty: bool = False


@dataclass
class Call:
    """Rows that are to be scored with one method of the judge.

    Attributes:
        columns: the method's arguments, each with a value a row.
        scores: what was found, in the order of the rows.
    """

    method: str
    columns: Sequence[Any]
    scores: list[Score | ScoreFailure | None] = field(init=False)
    done: threading.Event = field(default_factory=threading.Event)
    fresh: int = 0
    left: int = field(init=False)
    alone: deque[tuple[int, _Batch]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.left = len(self.columns[0])
        self.scores = [None] * self.left
        if not self.left:
            self.done.set()

    @property
    def num_waiting(self) -> int:
        """Rows that no worker has."""
        return len(self.scores) - self.fresh + len(self.alone)


@dataclass(frozen=True)
class Share:
    """What a worker gets: rows `first` to `last` of a call; with `batch` one that is tried alone."""

    call: Call
    first: int
    last: int
    batch: _Batch | None = None

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.last - self.first

    def columns(self) -> list[Any]:
        """Their arguments."""
        return [column[self.first : self.last] for column in self.call.columns]


class Spread:
    """Rows of all calls, for a number of workers. Thread-safe.

    Args:
        num_workers: how many there are. One is trusted with many rows at first; several begin with single
            ones, since who asks for several has a judge that is slow.
    """

    def __init__(self, num_workers: int) -> None:
        self._changed = threading.Condition()
        self._calls: deque[Call] = deque()
        self._closed = False
        self._most = sys.maxsize
        self._good = 0 if num_workers > 1 else sys.maxsize
        self._starting: set[int] = set()
        self.waits = [0] * num_workers
        """How often each worker was waited for in vain, until the time was over."""

    def put(self, call: Call) -> None:
        """Hand in a call; `done` is set when all its rows have scores."""
        with self._changed:
            if self._closed:
                self._fail(call, "the judge was closed")
            elif call.left:
                self._calls.append(call)
                self._changed.notify_all()

    def take(self, worker: int) -> Share | None:
        """The next rows for a worker, which waits for some; None when there will be no more.

        A worker that was waited for more often than one that is being started lets that start first, so that
        rows that hang are shared by count, too, and not only by who starts fastest.
        """
        with self._changed:
            while not self._closed:
                call = next((call for call in self._calls if call.num_waiting), None)
                if call is not None and not self._is_ahead(worker):
                    return self._share(call)
                self._changed.wait()
            return None

    def started(self, worker: int) -> None:
        """Say that a worker that lost its process is no longer being started."""
        with self._changed:
            self._starting.discard(worker)
            self._changed.notify_all()

    def found(self, share: Share, scores: Sequence[Score | ScoreFailure]) -> None:
        """Hand in the scores of a share."""
        with self._changed:
            self._good = min(self._good + share.num_rows, sys.maxsize)
            self._fill(share, scores)
            self._settle(share.batch, is_guilty=False)

    def lost(self, worker: int, share: Share, reason: str, *, late: bool) -> None:
        """Say that a share cost a worker its process: several rows are tried alone, a single one has failed.

        The worker counts as being started until `started` is said.

        Args:
            worker: which one.
            share: of which call.
            reason: why.
            late: whether it was waited for until the time was over.
        """
        with self._changed:
            self._starting.add(worker)
            self.waits[worker] += late
            self._good = 0
            if share.num_rows > 1 and not self._closed:
                batch = _Batch(share.num_rows, share.num_rows)
                share.call.alone.extend((row, batch) for row in range(share.first, share.last))
                self._changed.notify_all()
                return
            self._fill(share, [ScoreFailure(reason)] * share.num_rows)
            self._settle(share.batch, is_guilty=True)

    def close(self) -> None:
        """Let all workers go; rows that none has fail."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                self._fail(call, "the judge was closed")
            self._calls.clear()
            self._changed.notify_all()

    def _is_ahead(self, worker: int) -> bool:
        return any(self.waits[other] < self.waits[worker] for other in self._starting - {worker})

    def _share(self, call: Call) -> Share:
        if call.alone:
            row, batch = call.alone.popleft()
            return Share(call, row, row + 1, batch)
        fresh = len(call.scores) - call.fresh
        workers = len(self.waits)
        fair = fresh if workers == 1 else math.ceil(fresh / (2 * workers))  # the last ones end together
        size = max(1, min(fair, self._most, self._good // GOOD_ROWS))
        share = Share(call, call.fresh, call.fresh + size)
        call.fresh += size
        return share

    def _fill(self, share: Share, scores: Sequence[Score | ScoreFailure]) -> None:
        call = share.call
        call.scores[share.first : share.last] = scores
        call.left -= share.num_rows
        if not call.left:
            if call in self._calls:
                self._calls.remove(call)
            call.done.set()

    def _settle(self, batch: _Batch | None, *, is_guilty: bool) -> None:
        """Learn from rows that took too long together: where none did so alone, they only were too many."""
        if batch is None:
            return
        batch.left -= 1
        batch.is_guilty |= is_guilty
        if not batch.left and not batch.is_guilty:
            self._most = max(1, min(self._most, batch.size // 2))
            self._good = sys.maxsize

    def _fail(self, call: Call, reason: str) -> None:
        """Fail the rows that no worker has; a worker hands in what it has."""
        rows = [row for row, _ in call.alone] + list(range(call.fresh, len(call.scores)))
        call.alone.clear()
        call.fresh = len(call.scores)
        for row in rows:
            call.scores[row] = ScoreFailure(reason)
        call.left -= len(rows)
        if not call.left:
            call.done.set()
