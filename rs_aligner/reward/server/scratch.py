"""What a server leaves on its machine while it runs: a temporary folder, and Triton's shared memory.

Both hold prompts and answers, so nobody else may read them. Temporary folders are everybody's: whatever
others put there under our names is let alone. What a killed server of this user left is removed by the next
one on the machine, once its lock is free and its process gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

_NAME = re.compile(r"rs_judge_(\d+)_\w+")
_LOCK = "lock"
_SHARED_MEMORY = Path("/dev/shm")
# How exactly two readings of a process's start agree: the system's clock may have been set between them.
_SAME_START_SECONDS = 2.0


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files that only this user can read, locked as long as this process lives.

    Folders of this user's servers that were killed are removed first, with the shared memory that they left.
    """
    for folder in Path(tempfile.gettempdir()).glob("rs_judge_*"):
        with contextlib.suppress(OSError, ValueError):
            _remove_if_left_behind(folder)
    folder = Path(tempfile.mkdtemp(prefix=f"rs_judge_{os.getpid()}_"))  # mode 700
    try:
        with (folder / f".{_LOCK}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"{psutil.Process().create_time()}\n")
            lock.flush()
            (folder / f".{_LOCK}").rename(folder / _LOCK)  # so one that is there is held, or its holder gone
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """What this process and those that it starts meanwhile create, only this user can read."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def close_shared_memory(pid: int) -> None:
    """Let only this user read the shared memory of a process's Triton.

    Triton sets its mode to 644 itself, whatever the umask; so this is for when Triton has started, and before
    anything is asked of it.
    """
    for region in _regions(pid):
        region.chmod(0o600)


def remove_shared_memory(pid: int, *, before: float = math.inf) -> None:
    """Remove the shared memory of a process's Triton, which must have ended.

    Args:
        pid: the process.
        before: only what was made before this time, in seconds since 1970.
    """
    for region in _regions(pid):
        with contextlib.suppress(OSError):
            if region.lstat().st_mtime < before:
                region.unlink()


def _regions(pid: int) -> Iterator[Path]:
    """The shared memory of a process's Triton, as far as it is this user's."""
    for region in _SHARED_MEMORY.glob(f"pytrtion{pid}-*"):
        with contextlib.suppress(OSError):
            found = region.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                yield region


def _remove_if_left_behind(folder: Path) -> None:
    """Remove a dead server's folder.

    Raises:
        OSError: the server lives, in a container or on another machine perhaps.
        ValueError: its lock is none of ours.
    """
    named, found = _NAME.fullmatch(folder.name), folder.lstat()
    if named is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    with os.fdopen(os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started, pid = float(lock.readline()), int(named[1])
        living = _start(pid)
        if living is not None and abs(living - started) <= _SAME_START_SECONDS:
            return
        # The number may be another server's by now.
        remove_shared_memory(pid, before=math.inf if living is None else living)
        shutil.rmtree(folder, ignore_errors=True)


def _start(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where there is none of this number."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None
