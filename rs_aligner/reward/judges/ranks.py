"""The processes of a served Megatron model: started, asked, noticed when they die, and ended.

A copy of the model has a process for each of its tensor- and pipeline-parallel ranks; copies share the work
out. They are processes of their own, not this one: a rank that dies is started again and takes no server
along, and they leave with the server however it ends. Imports neither torch nor Megatron.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rs_aligner.child import start_process
from rs_aligner.policy.score_ranks import RankSettings

_logger = logging.getLogger("rs_aligner")
_PROGRAM = "rs_aligner.policy.score_ranks"
LEAVE_SECONDS = 3.0


class Ranks:
    """All ranks of all copies of a model.

    Args:
        settings: of every rank; `store` is filled in here.
        num_copies: data-parallel copies of the model.
        threads: torch threads of a rank.
        start_timeout: seconds that starting may take, the loading of the weights included.

    Raises:
        ValueError: the model cannot be loaded; with the first rank's reason.
    """

    def __init__(
        self, settings: RankSettings, *, num_copies: int, threads: int, start_timeout: float
    ) -> None:
        self._settings, self._num_copies = settings, num_copies
        self._threads, self._start_timeout = threads, start_timeout
        self._copies: list[list[Connection[Any, Any]]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            self.start()
        except ChildProcessError as error:
            raise ValueError(f"{settings.folder} cannot be served: {error}") from None

    @property
    def are_running(self) -> bool:
        """Whether every rank is there."""
        return bool(self.processes) and all(process.poll() is None for process in self.processes)

    def start(self) -> None:
        """Start all ranks and wait until every one of them is ready to score.

        Raises:
            ChildProcessError: one of them is not, with what it says.
        """
        self.end(at_once=True)
        per_copy = self._settings.ranks
        # What the ranks leave there (some import does) goes when they go, even by force.
        self._scratch = tempfile.TemporaryDirectory(prefix="ranks_", ignore_cleanup_errors=True)
        for copy in range(self._num_copies):
            settings = replace(self._settings, store=str(Path(self._scratch.name) / f"store{copy}"))
            connections = [self._start_rank(rank, per_copy, copy) for rank in range(per_copy)]
            self._copies.append(connections)
            for connection in connections:
                connection.send(settings)
        self._answers(timeout=self._start_timeout)

    def score(self, batches: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Rewards of a list of sequences for each copy.

        Raises:
            ChildProcessError: a rank died or failed; all of them have been ended.
        """
        try:
            for connections, sequences in zip(self._copies, batches, strict=True):
                for connection in connections:
                    connection.send(sequences)
        except OSError:
            self.end(at_once=True)
            raise ChildProcessError("a rank of the reward model died") from None
        answers = self._answers(timeout=None)
        return [answers[connections[0]] for connections in self._copies]

    def end(self, *, at_once: bool = False) -> None:
        """End all ranks: by closing their sockets; by force those that stay, or all of them `at_once`."""
        if at_once:
            for process in self.processes:
                process.kill()
        for connection in (connection for copy in self._copies for connection in copy):
            connection.close()
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self.processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._copies, self.processes = [], []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _start_rank(self, rank: int, per_copy: int, copy: int) -> Connection[Any, Any]:
        assert self._scratch is not None
        ours, theirs = socket.socketpair()
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(per_copy),
            "LOCAL_RANK": str(copy * per_copy + rank),  # the GPU
            "OMP_NUM_THREADS": str(self._threads),
            "TMPDIR": self._scratch.name,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        # -P: nothing is imported from the working directory; -W: Megatron's remarks help nobody here.
        program = [sys.executable, "-P", "-W", "ignore", "-m", _PROGRAM]
        self.processes.append(
            start_process(
                [*program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )
        )
        theirs.close()
        return Connection(ours.detach())

    def _answers(self, timeout: float | None) -> dict[Connection[Any, Any], Any]:
        """What each rank answers; the first that fails ends all."""
        waiting = [connection for copy in self._copies for connection in copy]
        answers: dict[Connection[Any, Any], Any] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                ready: list[Any] = wait(waiting, left)
            except OSError:  # another thread has ended them
                raise ChildProcessError("the ranks of the reward model were ended") from None
            problem = None if ready else f"the ranks are not ready after {timeout:g} s (start_timeout)"
            for connection in ready:
                waiting.remove(connection)
                try:
                    said, answers[connection] = connection.recv()
                except (EOFError, OSError):
                    said = "a rank of the reward model died"
                problem = problem or said
            if problem is not None:
                self.end(at_once=True)
                raise ChildProcessError(problem)
        return answers
