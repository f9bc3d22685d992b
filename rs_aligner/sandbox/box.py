"""The face of the sandbox: jobs in, how they ended out. From any number of threads at once.

A job is a program, or the tests of one, with what it reads and a file in memory that it writes. Several that
talk with each other run together. What fails in the machinery is a `SandboxError`, never a program's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rs_aligner.child import start_process
from rs_aligner.sandbox.jail import Limits
from rs_aligner.sandbox.jobs import Ended, Job, SandboxError, linked, memory_file
from rs_aligner.sandbox.zygote import MOST_BYTES

_START = (
    "import sys; sys.path[:] = [{root!r}] + [path for path in sys.path if path]; "
    "from rs_aligner.sandbox.zygote import main; del sys.path[0]; main({descriptor}, {parent})"
)
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_LATE_SECONDS = 30.0  # after a deadline, until the one process that has to see to it counts as stuck
_LEAVE_SECONDS = 2.0
_ROLES_OF_A_SLOT = 2
_OWN_USERS = 1 << 30  # above the users that systems have


class Sandbox:
    """Runs programs.

    Args:
        limits: what each may take.
        slots: how many jobs, or pairs of jobs that talk, run at once.
        namespaces: whether to take namespaces: `auto` where the system allows it, `required`, or `never`.
        python: the interpreter, whose packages programs then may import; None for this one with the standard
            library alone.

    Raises:
        SandboxError: it cannot be started, or not as required.
    """

    def __init__(
        self, limits: Limits, slots: int, namespaces: str = "auto", python: str | None = None
    ) -> None:
        self._limits, self._python = limits, python
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False
        self._jobs: dict[int, Future[Ended]] = {}
        self._number = 0
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._slots.put(slot)
        self._first_user = _free_users(slots * _ROLES_OF_A_SLOT) if os.geteuid() == 0 else None
        self.num_starts = 0
        """How often the process that forks was started."""
        self.version = ""
        """Of the interpreter."""
        self.refusal = ""
        """Why there are no namespaces, where there are none."""
        self.is_private, self.has_rules = namespaces != "never", False
        if namespaces == "auto":
            try:
                self._start()
            except SandboxError as error:
                self.refusal, self.is_private = str(error), False
        if self._control is None:
            self._start()

    @property
    def user(self) -> int | None:
        """The first of the users that programs run as; None for the one that this process has."""
        return self._first_user

    @contextlib.contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a place to run something in."""
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)

    def run(self, slot: int, jobs: Sequence[Job], seconds: float) -> list[Ended]:
        """Run jobs together until the first of them has ended; then the other is ended, too.

        Args:
            slot: the place, of `slot`.
            jobs: one, or two that get a `Link` to each other (descriptors `reading` and `writing`).
            seconds: that they have, from now.

        Returns:
            How each ended.

        Raises:
            SandboxError: something of it could not be done.
        """
        numbers: list[int] = []
        ends: list[Future[Ended]] = []
        try:
            with linked(jobs) as each:  # ours are closed when they are sent, so that an end is seen as one
                for place, job in enumerate(each):
                    number, end = self._send(job, slot * _ROLES_OF_A_SLOT + place, seconds)
                    numbers.append(number)
                    ends.append(end)
            found = [self._wait(ends[0], seconds)]
            for number, end in zip(numbers[1:], ends[1:], strict=True):
                self._tell({"kill": number})
                found.append(self._wait(end, seconds))
            return found
        finally:
            for number in numbers:
                self._jobs.pop(number, None)

    def close(self) -> None:
        """End everything. May be called twice, and while jobs run: they fail."""
        with self._lock:
            self._closed = True
            self._end()

    def _wait(self, end: Future[Ended], seconds: float) -> Ended:
        try:
            return end.result(seconds + _LATE_SECONDS)
        except TimeoutError:
            self._end()
            raise SandboxError("the sandbox did not answer, and was ended") from None

    def _send(self, job: Job, place: int, seconds: float) -> tuple[int, Future[Ended]]:
        with contextlib.ExitStack() as stack, self._lock:
            if self._closed:
                raise SandboxError("the sandbox was closed")
            if self._control is None:
                self._start()
            self._number += 1
            end: Future[Ended] = Future()
            self._jobs[self._number] = end
            payload = memory_file(json.dumps(job.payload).encode())
            stack.callback(os.close, payload)
            message = {
                "job": self._number,
                "role": job.role,
                "user": None if self._first_user is None else self._first_user + place,
                "seconds": seconds,
                "descriptors": ["payload", *job.descriptors],
            }
            self._tell(message, [payload, *job.descriptors.values()])
            return self._number, end

    def _tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        with self._lock:
            if self._control is None:
                raise SandboxError("the sandbox's process is gone")
            try:
                socket.send_fds(self._control, [json.dumps(message).encode()], list(descriptors))
            except OSError as error:
                self._end()
                raise SandboxError(f"the sandbox's process is gone: {error}") from None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[2])
        start = _START.format(root=root, descriptor=theirs.fileno(), parent=os.getpid())
        alone = ["-S"] if self._python is None else []
        try:
            process = start_process(
                [self._python or sys.executable, "-s", *alone, "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{self._python or sys.executable} cannot be started: {error}") from None
        finally:
            theirs.close()
        wanted = {
            "limits": self._limits.sent(),
            "namespaces": self.is_private,
            "has_user": self._first_user is not None,
        }
        answer = b""
        with contextlib.suppress(OSError):  # it has ended
            ours.send(json.dumps(wanted).encode())
            answer = ours.recv(MOST_BYTES)
        if not (said := json.loads(answer) if answer else {}).get("ready"):
            ours.close()
            wrote = process.communicate()[1].decode(errors="replace").strip().rpartition("\n")[2]
            ended = f"{self._python or sys.executable} ended with status {process.returncode}: {wrote}"
            raise SandboxError(said.get("problem") or ended)
        assert process.stderr is not None
        process.stderr.close()
        self._process, self._control = process, ours
        self.has_rules, self.version = bool(said["rules"]), str(said["version"])
        self.num_starts += 1
        threading.Thread(target=self._listen, args=(ours,), name="sandbox", daemon=True).start()

    def _listen(self, control: socket.socket) -> None:
        """Hand on how jobs ended, until the process is gone."""
        while True:
            try:
                data = control.recv(MOST_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            said = json.loads(data)
            end = self._jobs.get(said["job"])
            if end is not None and said["error"]:
                end.set_exception(SandboxError(f"a program could not be run: {said['error']}"))
            elif end is not None:
                end.set_result(Ended(said["status"], said["late"], said["cpu"]))
        with self._lock:
            if self._control is control:
                self._end()

    def _end(self) -> None:
        """End the process, and what it has forked with it."""
        with self._lock:
            process, control = self._process, self._control
            self._process = self._control = None
            if control is not None:
                with contextlib.suppress(OSError):
                    control.shutdown(socket.SHUT_RDWR)
                control.close()
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LEAVE_SECONDS)  # it ends what it has forked, and then itself
                process.kill()
                process.wait()
            for end in self._jobs.values():
                if not end.done():
                    end.set_exception(SandboxError("the sandbox was ended"))


def _free_users(number: int) -> int | None:
    """The first of some numbers of users that nobody has; None where this process can take no other."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first = _OWN_USERS + (os.getpid() * 256) % (1 << 30)
    if any(inside <= first and first + number <= inside + length for inside, _, length in ranges):
        return first
    inside, _, length = max(ranges, key=lambda each: each[2])
    if length < 4 * number + 4096:
        return None
    room = length // 2 - number  # the upper half, below 65534
    return int(inside + length // 2 + (os.getpid() * number) % max(1, room - 2))
