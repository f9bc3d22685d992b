"""Starts the ranks of one node, hands signals on to them, and ends as they ended.

Torch's elastic launcher takes a status of 75 for a failure, cannot hand SIGUSR1 on, and says nothing of a
killed rank. So this is ours: a rank that fails or is killed ends the others within seconds, and whatever ends
the launcher ends its ranks. Left out on purpose: several nodes (`srun`, `torchrun`), and starting ranks
again, which a run does by continuing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from rs_aligner import stopping
from rs_aligner.child import die_with_parent, start_process
from rs_aligner.exit_status import FAILED, FINISHED, TO_BE_CONTINUED, TO_BE_MENDED

LAUNCHER = "RS_ALIGNER_LAUNCHER"  # the process id of the launcher
STORE = "RS_ALIGNER_STORE"  # the descriptor of the socket at which the first rank lets the others meet
SHOWN = "RS_ALIGNER_SHOWN"  # set for the first rank where all that it prints comes to a terminal
SPARE_SECONDS = 2.0  # that the others get to end by themselves, and to say why, once a rank has failed
GRACE_SECONDS = 10.0  # between the SIGTERM and the SIGKILL that they get then
LOOK_SECONDS = 0.1
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGQUIT)
ENDS = (signal.SIGTERM, signal.SIGINT)


def launch(command: Sequence[str], num_ranks: int) -> int:
    """Run a command on so many ranks of this node.

    Args:
        command: of each rank; the environment tells it which one it is, as with `torchrun`.
        num_ranks: how many.

    Returns:
        0 where all finished, 75 where they stopped to be continued, and otherwise the status of the first
        that failed: 1 or 2, 128 and the number of the signal where that came from outside, 1 where one was
        killed.
    """
    received: list[int] = []
    ranks: list[_Rank] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for rank in ranks:
            rank.send(number)

    before = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    shown: set[bytes] = set()
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=num_ranks) as listener:
            for number in range(num_ranks):
                ranks.append(_Rank(command, number, num_ranks, listener, shown))
        if received:  # while they were started
            ranks[-1].send(received[-1])
        failed = _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed is not None:
        status = failed.status(received)
        if failed.process.returncode < 0 and status == FAILED:
            print(f"error: {failed.obituary()}", file=sys.stderr, flush=True)
        return status
    statuses = {rank.process.returncode for rank in ranks}
    return TO_BE_CONTINUED if TO_BE_CONTINUED in statuses else FINISHED


def started_by_launcher() -> None:
    """End with the launcher that started this process, if one did."""
    if launcher := os.environ.pop(LAUNCHER, None):
        die_with_parent(int(launcher))


class _Rank:
    """A rank's process; what it writes is shown, and its last line remembered."""

    def __init__(
        self, command: Sequence[str], number: int, num_ranks: int, listener: socket.socket, shown: set[bytes]
    ) -> None:
        self.number, self._shown = number, shown
        self._last = b""
        began = time.time() - time.monotonic() + stopping.process_started()
        env = {
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
            STORE: str(listener.fileno()),
            LAUNCHER: str(os.getpid()),
            stopping.STARTED: str(began),
        }
        keeps_stderr = number == 0 and sys.stderr.isatty()  # what is drawn is for a terminal
        if keeps_stderr and sys.stdout.isatty():
            env[SHOWN] = "1"
        self.process = start_process(
            command,
            held=(signal.SIGUSR1,),  # of a rank without a handler, it would be the end
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if keeps_stderr else subprocess.PIPE,
            pass_fds=[listener.fileno()],
            process_group=0,  # Ctrl-C reaches the launcher alone, which hands it on
        )
        streams = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        self._threads = [
            threading.Thread(target=self._show, args=(source, sink.buffer), daemon=True)
            for source, sink in streams
            if source is not None
        ]
        for thread in self._threads:
            thread.start()

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it if it has not ended, and show the rest of what it wrote."""
        self.send(signal.SIGKILL)
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=1.0)  # whatever it started may hold its pipes open

    @property
    def has_failed(self) -> bool:
        return self.process.poll() not in (None, FINISHED, TO_BE_CONTINUED)

    def status(self, received: Sequence[int]) -> int:
        """What the launcher ends with where this rank was the first that failed."""
        status = self.process.returncode
        if status < 0 and -status in ENDS and -status in received:
            return 128 - status
        if status < 0 or status not in (TO_BE_MENDED, 128 + signal.SIGINT, 128 + signal.SIGTERM):
            return FAILED
        return int(status)

    def obituary(self) -> str:
        """Which rank was killed where, by what, and what it said last."""
        name = signal.Signals(-self.process.returncode).name
        hint = " (perhaps for want of memory)" if name == "SIGKILL" else ""
        last = self._last.decode(errors="replace").strip()
        said = f'; its last line: "{last}"' if last else "; it had said nothing"
        return f"rank {self.number} on {socket.gethostname()} was killed by {name}{hint}{said}"

    def _show(self, source: IO[bytes], sink: IO[bytes]) -> None:
        """Show line by line what the rank writes; an error that all ranks come to is shown once."""
        for line in source:
            self._last = line if line.strip() else self._last
            if line.startswith(b"error: "):
                if line in self._shown:
                    continue
                self._shown.add(line)
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more; the rank goes on
                sink.write(line)
                sink.flush()


def _wait(ranks: Sequence[_Rank]) -> _Rank | None:
    """Wait until all ranks have ended; returns the first that failed, for which the others were ended."""
    failed: _Rank | None = None
    since, is_told = 0.0, False
    while any(rank.process.poll() is None for rank in ranks):
        time.sleep(LOOK_SECONDS)
        if failed is None:
            failed, since = _first_failed(ranks), time.monotonic()
        elif time.monotonic() > since + SPARE_SECONDS + GRACE_SECONDS:
            for rank in ranks:
                rank.kill()
        elif time.monotonic() > since + SPARE_SECONDS and not is_told:
            is_told = True
            for rank in ranks:
                rank.send(signal.SIGTERM)
    return failed or _first_failed(ranks)


def _first_failed(ranks: Sequence[_Rank]) -> _Rank | None:
    """The first that failed: one that was killed, if there is one, since the others then fail for it."""
    failed = [rank for rank in ranks if rank.has_failed]
    return min(failed, key=lambda rank: (rank.process.returncode > 0, rank.number), default=None)
