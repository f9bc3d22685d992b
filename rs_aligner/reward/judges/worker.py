"""One process with a user's judge in it: started, asked, ended when it takes too long, and started again.

Its code runs in the main thread there, so that alarms of its own work, too, which is why a judge without a
time limit lives in such a process as well. The process goes with the one that started it, however that ends.
Left out on purpose: which rows it is asked for, and what becomes of those that cost it its life (`spread`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rs_aligner.child import Child, live
from rs_aligner.reward.judges.base import TokenJudge, score_rows
from rs_aligner.reward.judges.functions import users_judge
from rs_aligner.rollout import LATE, Score, ScoreFailure


@dataclass(frozen=True)
class Offer:
    """What the process says of the judge when it has loaded it, or why it has not."""

    error: str = ""
    fingerprint: str = ""
    takes_tokens: bool = False
    warning: str | None = None


class Worker:
    """A process with a user's judge. One thread at a time may use it, but any may `close`.

    Args:
        spec: as `functions.users_judge`.
        kwargs: the judge's settings.
        time_limit: seconds that it may take over what it is asked for at once; None for no limit.
    """

    def __init__(self, spec: str, kwargs: Mapping[str, Any], time_limit: float | None) -> None:
        self._spec, self._kwargs, self._limit = spec, dict(kwargs), time_limit
        self._child = Child(__name__)
        self._closed = False
        self._cannot_start = False
        self._fingerprint = ""
        self.num_starts = 0
        """How often the judge was loaded."""

    def start(self) -> Offer:
        """Start the process and wait until the judge is loaded.

        Raises:
            ValueError: it cannot be loaded, or is another one than at the first start.
        """
        connection = self._child.start()
        self.num_starts += 1
        try:
            if self._closed:  # `close` may have come too early to see this process
                raise EOFError
            connection.send((self._spec, self._kwargs))
            offer: Offer = connection.recv()
        except (EOFError, OSError):
            offer = Offer(error=f"its process died while it was loaded ({self._child.end()})")
        except BaseException:
            self._child.end()
            raise
        if self._fingerprint and not offer.error and offer.fingerprint != self._fingerprint:
            offer = Offer(error="its code is not what it was when the server started")
        if offer.error:
            self._child.end()
            raise ValueError(offer.error)
        self._fingerprint, self._cannot_start = offer.fingerprint, False
        return offer

    def start_again(self) -> None:
        """Start the process if it is not there. What keeps it from starting is told by the next `ask`."""
        if not (self._closed or self._cannot_start) and self._child.connection is None:
            try:
                self.start()
            except (
                ValueError,
                OSError,
                RuntimeError,
            ):  # of the judge, of the machine, of an interpreter that ends
                self._cannot_start = True

    def ask(self, method: str, columns: Sequence[Any]) -> list[Score | ScoreFailure]:
        """Score rows; the process is started first where it is not there.

        Raises:
            TimeoutError: they took too long, and the process was ended.
            ChildProcessError: the process died over them, or cannot be started.
        """
        if self._closed:
            raise ChildProcessError("the judge was closed")
        try:
            if self._child.has_died:  # while it waited, and no row is to blame
                self._child.end()
            if self._child.connection is None:
                self.start()
            connection = self._child.connection
            assert connection is not None
            connection.send((method, columns))
            if connection.poll(self._limit):
                answer: list[Score | ScoreFailure] = connection.recv()
                return answer
        except (EOFError, OSError):
            raise ChildProcessError(f"the judge's process died over this row ({self._child.end()})") from None
        except ValueError as error:
            self._cannot_start = True
            raise ChildProcessError(f"the judge cannot be started again: {error}") from None
        assert self._limit is not None  # without one, there is no end of waiting but an answer
        self._child.end()
        raise TimeoutError(f"the judge took more than {self._limit:g} s over this row {LATE}")

    def close(self) -> None:
        """Let nothing be asked any more, and whoever waits for the process go on."""
        self._closed = True
        self._child.kill()

    def end(self) -> None:
        """End the process."""
        self._child.end()


def _serve(connection: Connection[Any, Any]) -> None:
    """The life of the process: load the judge, then score what comes until nobody asks any more."""
    spec, kwargs = connection.recv()
    try:
        judge, warning = users_judge(spec, kwargs)
    except Exception as error:
        connection.send(Offer(error=str(error)))
        return
    takes_tokens = isinstance(judge, TokenJudge)
    connection.send(Offer(fingerprint=judge.fingerprint, takes_tokens=takes_tokens, warning=warning))
    while True:
        method, columns = connection.recv()
        connection.send(score_rows(getattr(judge, method), columns, max_rows=len(columns[0])))


def main(descriptor: int, parent: int) -> None:
    """What the process runs."""
    live(descriptor, parent, _serve)
