"""Judges that are a user's Python code, in a process of their own, with a time limit for each row.

Such code may loop for ever on some text; a thread cannot be stopped, and a signal does not reach code that
waits in C. So a row that takes too long costs the process its life: its rows are then tried one by one in a
new one, so that only the guilty row fails. There the code runs in the main thread, so that alarms of its own
work, too, which is why a judge without a time limit lives in such a process as well. The process goes with
the one that started it, however that ends.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rs_aligner.child import Child, live
from rs_aligner.reward.judges.base import Metadata, TokenJudge, Tokens, score_rows
from rs_aligner.reward.judges.functions import users_judge
from rs_aligner.rollout import Score, ScoreFailure

_logger = logging.getLogger("rs_aligner")


@dataclass(frozen=True)
class _Offer:
    """What the process says of the judge when it has loaded it, or why it has not."""

    error: str = ""
    fingerprint: str = ""
    takes_tokens: bool = False
    warning: str | None = None


class LimitedJudge:
    """A user's judge in a process of its own, which is ended when a row takes too long.

    Args:
        spec: as `functions.users_judge`.
        kwargs: the judge's settings.
        time_limit: seconds that a row may take; None for no limit.

    Raises:
        ValueError: as `functions.users_judge`.
    """

    def __init__(self, spec: str, kwargs: Mapping[str, Any], time_limit: float | None) -> None:
        self._spec, self._kwargs, self._limit = spec, dict(kwargs), time_limit
        self._lock = threading.Lock()
        self._child = Child(__name__)
        self._closed = False
        self._rows_at_once = sys.maxsize
        self.fingerprint = ""
        offered = self._start()
        self.fingerprint = offered.fingerprint
        if offered.takes_tokens:
            self.score_tokens = self._score_tokens
        if offered.warning is not None:
            _logger.warning("%s", offered.warning)

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Score | ScoreFailure]:
        """Scores; a row that takes too long, or its process with it, is a failure."""
        return self._score("score_texts", prompts, responses, metadata)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._closed = True
        self._child.kill()  # who waits for it goes on
        with self._lock:
            self._child.end()

    def _score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Score | ScoreFailure]:
        return self._score("score_tokens", tokens, lengths)

    def _score(self, method: str, *columns: Any) -> list[Score | ScoreFailure]:
        scores: list[Score | ScoreFailure] = []
        num_rows = len(columns[0])
        with self._lock:
            while len(scores) < num_rows:
                rows = slice(len(scores), min(len(scores) + self._rows_at_once, num_rows))
                scores += self._chunk(method, *(column[rows] for column in columns))
        return scores

    def _chunk(self, method: str, *columns: Any) -> list[Score | ScoreFailure]:
        """Rows together if they take no longer than one may, else one by one."""
        num_rows = len(columns[0])
        try:
            return self._ask(method, columns)
        except (TimeoutError, ChildProcessError) as error:
            if num_rows == 1 or self._closed:
                return [ScoreFailure(str(error))] * num_rows
        one_by_one = ([column[i : i + 1] for column in columns] for i in range(num_rows))
        alone = [score for row in one_by_one for score in self._chunk(method, *row)]
        if not any(isinstance(score, ScoreFailure) for score in alone):
            self._rows_at_once = max(1, num_rows // 2)  # no row is slow, they only were too many
        return alone

    def _ask(self, method: str, columns: Sequence[Any]) -> list[Score | ScoreFailure]:
        if self._closed:
            raise ChildProcessError("the judge was closed")
        try:
            if self._child.has_died:  # while it waited, and no row is to blame
                self._child.end()
            if self._child.connection is None:
                self._start()
            connection = self._child.connection
            assert connection is not None
            connection.send((method, columns))
            if connection.poll(self._limit):
                answer: list[Score | ScoreFailure] = connection.recv()
                return answer
        except (EOFError, OSError):
            raise ChildProcessError(f"the judge's process died over this row ({self._child.end()})") from None
        except ValueError as error:
            raise ChildProcessError(f"the judge cannot be started again: {error}") from None
        assert self._limit is not None  # without one, there is no end of waiting but an answer
        self._child.end()
        raise TimeoutError(f"the judge took more than {self._limit:g} s over this row (judge.time_limit)")

    def _start(self) -> _Offer:
        """Start the process and wait until the judge is loaded."""
        connection = self._child.start()
        try:
            connection.send((self._spec, self._kwargs))
            offer: _Offer = connection.recv()
        except (EOFError, OSError):
            offer = _Offer(error=f"its process died while it was loaded ({self._child.end()})")
        except BaseException:
            self._child.end()
            raise
        if self.fingerprint and not offer.error and offer.fingerprint != self.fingerprint:
            offer = _Offer(error="its code is not what it was when the server started")
        if offer.error:
            self._child.end()
            raise ValueError(offer.error)
        return offer


def _serve(connection: Connection[Any, Any]) -> None:
    """The life of the process: load the judge, then score what comes until nobody asks any more."""
    spec, kwargs = connection.recv()
    try:
        judge, warning = users_judge(spec, kwargs)
    except Exception as error:
        connection.send(_Offer(error=str(error)))
        return
    takes_tokens = isinstance(judge, TokenJudge)
    connection.send(_Offer(fingerprint=judge.fingerprint, takes_tokens=takes_tokens, warning=warning))
    while True:
        method, columns = connection.recv()
        connection.send(score_rows(getattr(judge, method), columns, max_rows=len(columns[0])))


def main(descriptor: int, parent: int) -> None:
    """What the process runs."""
    live(descriptor, parent, _serve)
