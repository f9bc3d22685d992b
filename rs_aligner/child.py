"""Processes of our own: they end with whoever started them. `Child` is one that is asked over a connection.

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
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """See to it that this process ends as soon as the one that started it has ended, however it ended.

    The kernel watches the thread that started this process, so start it with `start_process`. Processes
    that this one starts inherit nothing of it. Where there is no such call (not on Linux) nothing happens.

    Args:
        parent: the id of the process that started this one, as that said it; where it has ended before this
            call, this process ends here. None: whoever is its parent now.
        number: the signal that ends it; SIGTERM for a process that is sure to end by it, and tidies up.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)  # as the kernel would have done, had the call come earlier


def start_process(
    command: Sequence[str], *, held: Collection[signal.Signals] = (), **settings: Any
) -> subprocess.Popen[bytes]:
    """Start a process that may `die_with_parent`.

    It is started by a thread that lives as long as this process, since such a process dies with the thread
    that started it.

    Args:
        command: as of `subprocess.Popen`, as are the settings.
        held: signals that reach it only when it says so (`signal.pthread_sigmask`), and wait until then.
    """

    def start() -> subprocess.Popen[bytes]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, held)  # a process has the mask of who starts it
        try:
            return subprocess.Popen(command, **settings)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    started: Future[subprocess.Popen[bytes]] = _Starter.thread.submit(start)
    return started.result()


class _Starter:
    """The thread that starts processes."""

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")

    @classmethod
    def renew(cls) -> None:
        cls.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


os.register_at_fork(after_in_child=_Starter.renew)  # a forked process has no other threads


def process_started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks since its boot; None for one that has ended.

    "" for one that lives, where nothing more is told. Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    return ""


class Child:
    """A process that runs `main(descriptor, parent)` of a module, which hands both to `live`.

    It may be started, ended and started again. One thread at a time may use it, but any may `kill`.

    Args:
        module: the name of the module.
    """

    def __init__(self, module: str) -> None:
        self._module = module
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
        self._process = start_process(
            [
                *(sys.executable, "-P", "-c"),
                f"from {self._module} import main; main({theirs.fileno()}, {os.getpid()})",
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
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


def leave_signals_to_parent() -> None:
    """Ignore what asks a run to stop: what is in flight is to be finished, and the parent decides.

    Ctrl-C reaches the whole terminal, and Slurm's signals each process of a step, in whatever session.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def live(descriptor: int, parent: int, serve: Callable[[Connection[Any, Any]], None]) -> None:
    """The life of the process: serve until nobody asks any more; it ends with its parent."""
    leave_signals_to_parent()
    die_with_parent(parent)  # where that cannot be, the connection ends it
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(descriptor))
