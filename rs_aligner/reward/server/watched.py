"""Triton's processes, watched from the first moment of a start on: what has ended is said at once.

Triton is a server and, for each instance of the model, a stub that runs its Python. Where a stub dies (for
want of memory, or of a lock's fault, which its backend is known for), Triton may say "ready" all the same;
where one dies in the start, PyTriton waits for two minutes. Left out on purpose: starting another (`serve`).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psutil
from pytriton.constants import DEFAULT_TRITON_STARTUP_TIMEOUT_S
from pytriton.triton import Triton

from rs_aligner.address import Address
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import Conversation

START_SECONDS = float(DEFAULT_TRITON_STARTUP_TIMEOUT_S)
"""How long Triton may take to start: as long as PyTriton lets it."""
STUB_SECONDS = 30.0
"""How long it may take until all stubs are there; Triton waits for one that died for ever."""
ASK_SECONDS, LOOK_SECONDS = 1.0, 0.1
# How long processes that were killed may take to vanish.
GONE_SECONDS = 1.0
_SERVER, _STUB = "tritonserver", "triton_python_b"  # a zombie's name is cut
_PYTHON = "a process of Triton's Python backend"

# The processes of the Triton that runs, the server first: those of one that ended early may be nobody's
# children any more.
_running: list[psutil.Process] = []


class BrokenStart(RuntimeError):
    """A Triton that broke before it was ready: another one may start."""


class WatchedTriton(Triton):
    """A Triton that says which of its processes has ended.

    Args:
        num_stubs: how many instances of the model it runs, each in a process of its own.
        given: what PyTriton's wants.
    """

    def __init__(self, num_stubs: int, **given: Any) -> None:
        super().__init__(**given)
        self._num_stubs = num_stubs
        # Else a further stub asks the model for its config, all of which PyTriton has written, and ends. The
        # switch stands beside another key, at its default, since PyTriton writes none without a value.
        self._triton_server_config["exit-on-error"] = "true --disable-auto-complete-config"

    def problem(self) -> str | None:
        """What is broken beyond repair; None while all is well."""
        if (ended := _ended()) is not None:
            return f"{ended} ended by itself"
        return None if self.is_alive() else "the connection to Triton ended by itself"

    def _on_tritonserver_exit(self, *_: object) -> None:
        """Leave it to who watches and waits: to end in the midst of PyTriton's own clearing up is a crash."""

    def _run_server(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            BrokenStart: a process of it has ended, or it takes longer than `START_SECONDS`.
        """
        super()._run_server()
        link = Conversation(Address(self._config.http_address, self._config.http_port))
        began = time.monotonic()
        is_ready = False
        while not is_ready:
            with contextlib.suppress(TransportError):
                is_ready = link.exchange("GET", "/v2/health/ready", ASK_SECONDS).status == 200
            _find_processes()
            seconds, are_missing = time.monotonic() - began, len(_running) < 1 + self._num_stubs
            if (ended := _ended()) is not None or not self._is_alive_impl():
                raise BrokenStart(f"{ended or _SERVER} ended before it was ready")
            if are_missing and (is_ready or seconds > STUB_SECONDS):  # who ended between two looks
                raise BrokenStart(f"{_PYTHON} is not there after {seconds:.1f} s")
            if seconds > START_SECONDS:
                raise BrokenStart(f"Triton was not ready after {START_SECONDS:g} s")
            if not is_ready:
                time.sleep(LOOK_SECONDS)


def end_triton() -> None:
    """Kill what is left of Triton, and wait until it is gone (not by `wait`: PyTriton does that itself)."""
    processes = list(_running)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + GONE_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    _running.clear()


def end_processes() -> None:
    """End all processes of Triton, and what else this process has started, at once."""
    end_triton()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _find_processes() -> None:
    """Add to `_running` what belongs to this process's Triton by now."""
    with contextlib.suppress(psutil.Error):
        servers = [p for p in psutil.Process().children() if _name(p) == _SERVER]
        # Its own children: in the start it has a shell ask a stub for its version, too.
        stubs = [p for server in servers for p in server.children() if _name(p).startswith(_STUB)]
        _running.extend(p for p in [*servers, *stubs] if p not in _running)


def _ended() -> str | None:
    """Which process has ended; None while all that were seen live."""
    for process in _running:
        if not _is_alive(process):
            return _SERVER if process is _running[0] else _PYTHON
    return None


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
