"""Whether a run has what it needs of the machine: a folder that takes files, room on the disk, open files.

Asked before the work where that can be known; each says what is missing in one line. Left out on purpose:
quotas, of which a program cannot ask in general; a write that meets one says so.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import tempfile
from pathlib import Path

from rs_aligner.files import make_folder
from rs_aligner.threads import control_groups

OPEN_FILES = 256
"""What a run needs at most: sockets to judges and other ranks, pipes of processes, a few files at a time."""
_WISHED = 4096
_SPARE = 1.02  # of a checkpoint's tensors; for names, descriptions and the tokenizer
_SMALL = 1 << 20


def check_writable(folder: Path, key: str) -> None:
    """See to it that files can be made in a folder, which is made where it does not exist.

    Args:
        folder: of the run.
        key: the setting that names it, for messages.

    Raises:
        ValueError: they cannot; with the reason.
    """
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"whether there is room for anything")
            file.flush()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{key}={folder} cannot be written: {reason}; name another folder") from None


def check_writable_above(folder: Path, key: str) -> None:
    """The same where nothing may be left: the folder is not made, the nearest one above that exists is tried.

    The file that is tried has no name where the system can do that, and is gone at once in any case.

    Raises:
        ValueError: files cannot be made there; with the reason.
    """
    check_writable(nearest(folder), key)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def check_room(folder: Path, wanted: int) -> None:
    """See to it that a disk has room for a checkpoint of about `wanted` bytes.

    Args:
        folder: where it is to be; perhaps it does not exist yet.
        wanted: bytes.

    Raises:
        OSError: it has not; with both numbers.
    """
    wanted, free = int(_SPARE * wanted) + _SMALL, _free_bytes(folder)
    if free < wanted:
        raise OSError(
            f"no space left on device: {size_text(free)} are free, and about {size_text(wanted)} are needed"
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(nearest(folder)).free


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this machine has, or that its control groups let this process have.

    Args:
        root: where `proc` and `sys` lie; another one for tests.
    """
    import psutil

    found = [int(psutil.virtual_memory().total)]
    for folder, is_v2 in control_groups(root, "memory"):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            found.append(int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text()))
    return min(found)


def check_open_files() -> None:
    """Let this process open as many files as a run needs; raises the soft limit where that is allowed.

    Raises:
        ValueError: it may not; with the limit and what would work.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = _WISHED if hard == resource.RLIM_INFINITY else min(hard, _WISHED)
    if soft != resource.RLIM_INFINITY and soft < wished:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wished, hard))
        soft = wished
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise ValueError(
            f"only {soft} open files are allowed here, and a run needs {OPEN_FILES}: raise the limit "
            "(ulimit -n, or nofile in limits.conf) and start again"
        )


def size_text(number: float) -> str:
    """Bytes in three digits and a unit."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"
