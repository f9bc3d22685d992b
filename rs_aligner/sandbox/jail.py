"""A process binds itself before it runs a program: limits, user, privileges, files, calls, in this order."""

from __future__ import annotations

import math
import os
import resource
import signal
from dataclasses import asdict, dataclass
from typing import Any

from rs_aligner.child import die_with_parent
from rs_aligner.sandbox import kernel
from rs_aligner.sandbox.seccomp import forbid
from rs_aligner.sandbox.view import Rules, make_tmp

THREADS = 64
_OPEN_FILES = 128


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        memory: bytes of address space, the interpreter's own included.
        output: bytes of what it writes, and of each file.
        files: bytes of all files in its `/tmp`, where it has one.
    """

    memory: int = 1 << 29
    output: int = 1 << 24
    files: int = 1 << 24

    def sent(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Surroundings:
    """What holds for all programs of a sandbox.

    Attributes:
        limits: what each may take.
        is_private: whether the root is one of its own.
        rules: Landlock's, where the root is the machine's.
        threads: most threads of the user that a program runs as.
    """

    limits: Limits
    is_private: bool
    rules: Rules | None
    threads: int


def enter(around: Surroundings, user: int | None, seconds: float) -> None:
    """Bind this process for good.

    Args:
        around: what holds for all.
        user: whom to run as; None for whoever this is.
        seconds: of the processor that it may take, rounded up to whole ones, and one more.

    Raises:
        OSError: something of it is not possible.
    """
    os.setsid()
    os.umask(0o077)
    own, group = (os.getuid(), os.getgid()) if user is None else (user, user)
    if around.is_private:
        make_tmp(around.limits.files, own, group)
    else:
        os.chdir("/")
    _limit(around.limits, around.threads, seconds)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    die_with_parent()  # a change of user forgets it
    kernel.drop_privileges()
    if around.rules is not None:
        around.rules.enforce()
    forbid(writing=not around.is_private)


def _limit(limits: Limits, threads: int, seconds: float) -> None:
    whole = math.ceil(seconds)
    for name, soft, hard in (
        (resource.RLIMIT_CPU, whole + 1, whole + 2),
        (resource.RLIMIT_AS, limits.memory, limits.memory),
        (resource.RLIMIT_FSIZE, limits.output, limits.output),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_NPROC, threads, threads),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        most = resource.getrlimit(name)[1]
        bounded = (value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard))
        resource.setrlimit(name, tuple(bounded))  # type: ignore[arg-type]  # two of them
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
