"""A time limit for judges that are Python code, which may loop for ever on some text.

A thread cannot be stopped, and a signal does not reach code that waits in C. So the judge lives in a process
of its own, and a row that takes too long costs that process its life: its rows
are then tried one by one in a new one, so that only the guilty row fails. The process goes with the one that
started it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from rs_aligner.reward.judges.base import Metadata, score_rows
from rs_aligner.reward.judges.functions import users_judge
from rs_aligner.rollout import Score, ScoreFailure

_logger = logging.getLogger("rs_aligner")
_PR_SET_PDEATHSIG = 1


class LimitedJudge:
    """A user's judge in a process of its own, which is ended when a row takes too long.

    Args:
        spec: as `functions.users_judge`.
        kwargs: the judge's settings.
        time_limit: seconds that a row may take.

    Raises:
        ValueError: as `functions.users_judge`.
    """

    def __init__(self, spec: str, kwargs: Mapping[str, Any], time_limit: float) -> None:
        self._spec, self._kwargs, self._limit = spec, dict(kwargs), time_limit
        self._lock = threading.Lock()
        # A process that asks to die with its parent dies with the thread that started it.
        self._starter = ThreadPoolExecutor(max_workers=1)
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._rows_at_once = sys.maxsize
        self.fingerprint, warning = self._start()
        if warning is not None:
            _logger.warning("%s", warning)

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Score | ScoreFailure]:
        """Scores; a row that takes too long, or its process with it, is a failure."""
        scores: list[Score | ScoreFailure] = []
        with self._lock:
            while len(scores) < len(prompts):
                rows = slice(len(scores), min(len(scores) + self._rows_at_once, len(prompts)))
                scores += self._chunk(prompts[rows], responses[rows], metadata[rows])
        return scores

    def close(self) -> None:
        """End the process, whatever it does."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._starter.shutdown()

    def _chunk(self, *columns: list[Any]) -> list[Score | ScoreFailure]:
        """Rows together if they take no longer than one may, else one by one."""
        num_rows = len(columns[0])
        try:
            return self._ask(columns)
        except (TimeoutError, ChildProcessError) as error:
            if num_rows == 1 or self._closed:
                return [ScoreFailure(str(error))] * num_rows
        alone = [score for i in range(num_rows) for score in self._chunk(*(c[i : i + 1] for c in columns))]
        if not any(isinstance(score, ScoreFailure) for score in alone):
            self._rows_at_once = max(1, num_rows // 2)  # no row is slow, they only were too many
        return alone

    def _ask(self, columns: Sequence[list[Any]]) -> list[Score | ScoreFailure]:
        if self._closed:
            raise ChildProcessError("the judge was closed")
        try:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            self._connection.send(columns)
            if self._connection.poll(self._limit):
                answer: list[Score | ScoreFailure] = self._connection.recv()
                return answer
        except (EOFError, OSError):
            raise ChildProcessError(f"the judge's process died over this row ({self._end()})") from None
        except ValueError as error:
            raise ChildProcessError(f"the judge cannot be started again: {error}") from None
        self._end()
        raise TimeoutError(f"the judge took more than {self._limit:g} s over this row (judge.time_limit)")

    def _start(self) -> tuple[str, str | None]:
        """Start the process and wait until the judge is loaded; its fingerprint and warning."""
        ours, theirs = socket.socketpair()
        code = f"from {__name__} import main; main({theirs.fileno()}, {os.getpid()})"
        self._process = self._starter.submit(
            subprocess.Popen,
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).result()
        theirs.close()
        self._connection = Connection(ours.detach())
        try:
            self._connection.send((self._spec, self._kwargs))
            error, fingerprint, warning = self._connection.recv()
        except (EOFError, OSError):
            error = f"its process died while it was loaded ({self._end()})"
        if error is not None:
            self._end()
            raise ValueError(error)
        return fingerprint, warning

    def _end(self) -> str:
        """End the process; how it ended."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is None:
            return "not started"
        self._process.kill()
        return f"exit status {self._process.wait()}"


def _serve(connection: Connection[Any, Any]) -> None:
    """The life of the process: load the judge, then score what comes until nobody asks any more."""
    spec, kwargs = connection.recv()
    try:
        judge, warning = users_judge(spec, kwargs)
    except Exception as error:
        connection.send((str(error), "", None))
        return
    connection.send((None, judge.fingerprint, warning))
    while True:
        columns = connection.recv()
        connection.send(score_rows(judge.score_texts, columns, max_rows=len(columns[0])))


def main(descriptor: int, parent: int) -> None:
    """What the process runs; it ends with its parent."""
    # Ctrl-C reaches the whole terminal, and Slurm's SIGTERM the whole step, but what is in flight is to be
    # finished: the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the line above
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        _serve(Connection(descriptor))
