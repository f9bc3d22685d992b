"""The process that forks a program's process for each that is to run: an interpreter that is there already.

It holds no secret and runs no program itself. It is started by `Sandbox` with an empty environment, where it
can it takes namespaces (`view`), and then does what it is told over a socket: fork, end, say how something
ended. With namespaces it is the first process of its own, so that the kernel ends whatever there is when it
ends; without them each process it forks has the kernel's promise to end with it, and can start no other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from rs_aligner.child import die_with_parent
from rs_aligner.sandbox.jail import THREADS, Limits, Surroundings, enter
from rs_aligner.sandbox.link import Link
from rs_aligner.sandbox.program import answer_calls, run_calls, run_script
from rs_aligner.sandbox.testing import run_tests
from rs_aligner.sandbox.view import Rules, leave_namespaces, make_root

MOST_BYTES = 1 << 16
"""Of a message."""

_READY = b"ready"
_START_SECONDS = 20.0  # to bind itself; a busy machine is not a program's fault
_PRELOADED = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools"),
    *(
        "heapq",
        "io",
        "itertools",
        "math",
        "operator",
        "queue",
        "random",
        "re",
        "statistics",
        "string",
        "typing",
    ),
)
_SPARE_THREADS = (
    512  # that the user may have more of than when this began, where the limit counts all of them
)


@dataclass
class _Running:
    """A process that was forked: until it is ready it has `_START_SECONDS`, and then its own."""

    job: int
    seconds: float
    deadline: float
    status: int
    told: bytes = b""
    is_late: bool = False
    is_unwanted: bool = False

    @property
    def is_ready(self) -> bool:
        return self.told == _READY


class _Zygote:
    """Forks and ends processes."""

    def __init__(self, control: socket.socket, around: Surroundings) -> None:
        self._control, self._around = control, around
        self._running: dict[int, _Running] = {}
        self._null = os.open("/dev/null", os.O_RDWR)
        self._wakes, ours = socket.socketpair()
        for end in (self._wakes, ours):
            end.setblocking(False)
        self._waker = ours  # kept open
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for end in (control, self._wakes):
            self._selector.register(end, selectors.EVENT_READ)

    def run(self) -> None:
        """Do what is asked, until nobody asks any more."""
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._control:
                    data, descriptors, _, _ = socket.recv_fds(self._control, MOST_BYTES, 8)
                    if not data:
                        return self._end()
                    self._do(json.loads(data), descriptors)
                elif key.fileobj is self._wakes:
                    self._wakes.recv(4096)
                else:
                    self._hear(key.data)
            self._end_late_ones()
            self._reap()

    def _hear(self, running: _Running) -> None:
        """What a process says of its start; when that is done, its time begins."""
        said = os.read(running.status, MOST_BYTES)
        running.told += said
        if not said or running.is_ready:
            self._selector.unregister(running.status)
        if running.is_ready:
            running.deadline = time.monotonic() + running.seconds

    def _patience(self) -> float | None:
        deadlines = [running.deadline for running in self._running.values() if not running.is_late]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _do(self, asked: dict[str, Any], descriptors: list[int]) -> None:
        if "kill" in asked:
            for process, running in self._running.items():
                if running.job == asked["kill"]:
                    running.is_unwanted = True
                    os.kill(process, signal.SIGKILL)
            return
        reading, writing = os.pipe()
        try:
            process = os.fork()
        except OSError as error:
            self._say({"job": asked["job"], "error": f"no process could be forked: {error}"})
            os.close(reading)
        else:
            if process == 0:
                self._live(asked, descriptors, writing)
            started = time.monotonic() + _START_SECONDS
            running = _Running(asked["job"], asked["seconds"], started, reading)
            self._running[process] = running
            self._selector.register(reading, selectors.EVENT_READ, running)
        for descriptor in (*descriptors, writing):
            os.close(descriptor)

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for process, running in self._running.items():
            if running.deadline <= now and not running.is_late:
                running.is_late = True
                os.kill(process, signal.SIGKILL)

    def _reap(self) -> None:
        while self._running:
            process, status, usage = os.wait4(-1, os.WNOHANG)
            if process == 0:
                return
            running = self._running.pop(process)
            if running.status in self._selector.get_map():
                self._selector.unregister(running.status)
            with open(running.status, "rb") as file:
                running.told += file.read(MOST_BYTES)
            ended, problem = os.waitstatus_to_exitcode(status), running.told.decode(errors="replace")
            if running.is_ready or running.is_unwanted:
                problem = ""
            elif running.is_late:
                problem = f"it had not started after {_START_SECONDS:g} s"
            elif not running.told:
                problem = f"it died at its start ({ended})"
            said = {"job": running.job, "status": ended, "late": running.is_late, "error": problem}
            self._say({**said, "cpu": usage.ru_utime + usage.ru_stime})

    def _end(self) -> None:
        """End what runs, and wait until it has."""
        for process in self._running:
            os.kill(process, signal.SIGKILL)
        for process in self._running:
            os.waitpid(process, 0)

    def _say(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())

    def _live(self, asked: dict[str, Any], descriptors: list[int], status: int) -> None:
        """What a forked process does: never returns."""
        try:
            signal.set_wakeup_fd(-1)
            given = dict(zip(asked["descriptors"], descriptors, strict=True))
            with open(given.pop("payload"), encoding="utf-8") as file:
                payload = json.load(file)
            for number in (0, 1, 2):
                os.dup2(given.get(("stdin", "stdout")[number] if number < 2 else "", self._null), number)
            rules = self._around.rules
            _keep_only({0, 1, 2, status, *given.values(), *([rules.descriptor] if rules else [])})
            enter(self._around, asked["user"], asked["seconds"])
            os.write(status, _READY)
            os.close(status)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(status, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        code = 1
        try:
            code = _play(asked["role"], payload, given)
        finally:
            os._exit(code & 0xFF)


def _play(role: str, payload: dict[str, Any], given: dict[str, int]) -> int:
    if role == "script":
        return run_script(payload["program"])
    if role == "calls":
        return run_calls(payload["program"], payload["name"], payload["calls"], given["results"])
    link = Link(given["reading"], given["writing"])
    if role == "program":
        return answer_calls(payload["program"], link)
    return run_tests(payload, link, given["verdict"])


def _keep_only(descriptors: set[int]) -> None:
    """Close every other descriptor."""
    before = -1
    for kept in sorted(descriptors):
        if kept > before + 1:  # an empty range would be taken for all of them
            os.closerange(before + 1, kept)
        before = kept
    os.closerange(before + 1, 1 << 16)


def _private(control: socket.socket) -> None:
    """Go on as the first process of new namespaces, with a private root."""
    leave_namespaces()
    inner = os.fork()
    if inner:
        control.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)
    die_with_parent()
    make_root()


def _threads() -> int:
    """Most threads of the user that this is, with those that there are now."""
    number = 0
    for folder in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.stat(f"/proc/{int(folder)}").st_uid == os.getuid():
                number += len(os.listdir(f"/proc/{folder}/task"))
    return number + _SPARE_THREADS


def main(descriptor: int, parent: int) -> None:
    """What the process runs."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # of a terminal, or of Slurm: who started this decides
    die_with_parent(parent)
    control = socket.socket(fileno=descriptor)
    wanted = json.loads(control.recv(MOST_BYTES))
    is_private, has_user = wanted["namespaces"], wanted["has_user"]
    try:
        if is_private:
            _private(control)
            rules, problem = None, ""
        else:
            rules, problem = _rules()
        threads = THREADS if is_private or has_user else _threads()
        for name in _PRELOADED:  # once, not in each program
            importlib.import_module(name)
        gc.freeze()  # what is there is shared by all that are forked, until somebody touches it
        around = Surroundings(Limits(**wanted["limits"]), is_private, rules, threads)
        version = sys.version.split()[0]
        said = {"ready": True, "rules": rules is not None, "problem": problem, "version": version}
        control.send(json.dumps(said).encode())
    except Exception as error:
        control.send(json.dumps({"ready": False, "problem": f"{type(error).__name__}: {error}"}).encode())
        sys.exit(1)
    _Zygote(control, around).run()


def _rules() -> tuple[Rules | None, str]:
    try:
        return Rules(), ""
    except OSError as error:
        return None, str(error)
