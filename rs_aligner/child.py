"""A process of our own for code that may have to be ended: it is asked over a connection, and goes with us.

Code that loops, or waits in C, is stopped by nothing but the end of its process. Left out on purpose: what is
asked and answered, how long an answer may take, and what its lack means; that is the askers' business.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

_PR_SET_PDEATHSIG = 1


class Child:
    """A process that runs `main(descriptor, parent)` of a module, which hands both to `live`.

    It may be started, ended and started again. One thread at a time may use it, but any may `kill`.

    Args:
        module: the name of the module.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        # A process that asks to die with its parent dies with the thread that started it.
        self._starter: ThreadPoolExecutor | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.connection: Connection[Any, Any] | None = None
        """To the process; None where it is not started."""

    @property
    def has_died(self) -> bool:
        """Whether it was started and is gone."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> Connection[Any, Any]:
        """Start the process; returns the connection to it."""
        ours, theirs = socket.socketpair()
        self._starter = self._starter or ThreadPoolExecutor(max_workers=1)
        self._process = self._starter.submit(
            subprocess.Popen,
            [
                *(sys.executable, "-P", "-c"),
                f"from {self._module} import main; main({theirs.fileno()}, {os.getpid()})",
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).result()
        theirs.close()
        self.connection = Connection(ours.detach())
        return self.connection

    def kill(self) -> None:
        """End the process at once; a thread that waits for its answer goes on, with an error."""
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> str:
        """End the process and forget it; returns how it ended."""
        if self.connection is not None:
            self.connection.close()
        process, self._process, self.connection = self._process, None, None
        if process is None:
            return "not started"
        process.kill()
        return f"exit status {process.wait()}"

    def close(self) -> None:
        """End the process for good."""
        self.end()
        if self._starter is not None:
            self._starter.shutdown()


def live(descriptor: int, parent: int, serve: Callable[[Connection[Any, Any]], None]) -> None:
    """The life of the process: serve until nobody asks any more; it ends with its parent."""
    # Ctrl-C reaches the whole terminal, and Slurm's SIGTERM the whole step, but what is in flight is to be
    # finished: the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # else the connection ends it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the line above
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(descriptor))
