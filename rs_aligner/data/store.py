"""A folder in the node's temporary one with what was read of large files: made by one process, mapped by all.

Columns of numbers and of bytes, and a record beside them with their sizes and checksums. A store is written
beside its place and takes it whole; one that is damaged, or that a killed process left half, is made again.
Only this user can read it, and whatever others put there under our names is let alone. Stores that nobody
has opened for two weeks are removed when the next one is made, and so is the ninth. Left out on purpose: what
is kept (`stored.py`), and other machines, which make their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rs_aligner.files import checksum, checksum_of_file, running_checksum

_RECORD = "store.json"
_HALF = ".new"  # behind the name of a store that is being made
_UNUSED_SECONDS = 14 * 24 * 3600.0
_MOST = 8  # stores of a user


class Store:
    """What lies in a store.

    Attributes:
        folder: where.
        record: what was noted beside the columns.
        size: bytes of all of it.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            ValueError: it is not whole.
            OSError: it is not there.
        """
        self.folder = folder
        summed, _, text = (folder / _RECORD).read_bytes().partition(b"\n")
        if checksum(text).encode() != summed:
            raise ValueError(f"{folder / _RECORD} is damaged")
        whole = json.loads(text)
        self.record: dict[str, Any] = whole["record"]
        self._columns: dict[str, np.ndarray] = {}
        for name, (kind, size, known) in whole["columns"].items():
            path = folder / name
            if path.stat().st_size != size or checksum_of_file(path) != known:
                raise ValueError(f"{path} is damaged")
            self._columns[name] = np.memmap(path, kind, "r") if size else np.empty(0, kind)
        self.size = sum(size for _, size, _ in whole["columns"].values())

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, of which only what is looked at comes into memory."""
        return self._columns[name]


class Writer:
    """Writes a store's columns as they come.

    Args:
        folder: empty.
        kinds: of each column numpy's type.
    """

    def __init__(self, folder: Path, kinds: dict[str, str]) -> None:
        self._folder, self._kinds = folder, kinds
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in kinds}
        self._sums = {name: running_checksum() for name in kinds}
        self._sizes = dict.fromkeys(kinds, 0)

    def add(self, name: str, content: bytes) -> None:
        """Put something behind a column."""
        self._files[name].write(content)
        self._sums[name].update(content)
        self._sizes[name] += len(content)

    def column(self, name: str) -> np.ndarray:
        """What a column has by now."""
        self._files[name].flush()
        size = self._sizes[name]
        return (
            np.memmap(self._folder / name, self._kinds[name], "r") if size else np.empty(0, self._kinds[name])
        )

    def finish(self, record: dict[str, Any]) -> None:
        """Close the columns, and write the record."""
        self.close()
        columns = {
            name: [kind, self._sizes[name], self._sums[name].hexdigest()]
            for name, kind in self._kinds.items()
        }
        text = json.dumps({"columns": columns, "record": record}).encode()
        (self._folder / _RECORD).write_bytes(checksum(text).encode() + b"\n" + text)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def opened(key: str, make: Callable[[Path], None]) -> tuple[Store, bool]:
    """The store of a key, made where there is none that is whole; one process makes it, others wait for it.

    Args:
        key: what it is of: the same content, read in the same way, and nothing else.
        make: writes it into an empty folder.

    Returns:
        The store, and whether it was made.

    Raises:
        OSError: it cannot be kept here.
        Exception: of `make`; nothing of the store stays.
    """
    home = _home()
    with _alone(home, key):
        folder = home / key
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            store = Store(folder)
            os.utime(folder / _RECORD)  # it is in use
            return store, False
        _remove_old(home, key)
        unfinished = home / f"{key}{_HALF}"
        for left in (unfinished, folder):
            shutil.rmtree(left, ignore_errors=True)
        try:
            unfinished.mkdir(mode=0o700)
            make(unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        try:
            return Store(folder), True
        except ValueError as error:
            raise OSError(f"what was written is not what is read: {error}") from None


def _home() -> Path:
    """The folder of this user's stores.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    home = Path(tempfile.gettempdir()) / f"rs_aligner_data_{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{home} is not this user's")
    if stat.S_IMODE(found.st_mode) != 0o700:
        home.chmod(0o700)
    return home


@contextlib.contextmanager
def _alone(home: Path, key: str, *, waits: bool = True) -> Iterator[None]:
    """As long as this lasts no other process is at work on a store; a few stores share a lock.

    Raises:
        BlockingIOError: one is, and this does not wait.
    """
    path = home / f"{key[0]}.lock"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield


def _remove_old(home: Path, key: str) -> None:
    """Remove stores that are half, or were not opened for long, and the longest unused where there are many.

    A process that has one mapped keeps what it has: the names go, not the pages.
    """
    used: list[tuple[float, Path]] = []
    for folder in home.glob("*/"):
        record = folder / _RECORD
        with contextlib.suppress(OSError):
            is_half = folder.suffix == _HALF or not record.exists()
            used.append((0.0 if is_half else record.stat().st_mtime, folder))
    used.sort(reverse=True)
    for place, (when, folder) in enumerate(used):
        if place + 1 >= _MOST or time.time() - when > _UNUSED_SECONDS:
            is_held = folder.name[0] == key[0]  # its lock, by this process
            lock = contextlib.nullcontext() if is_held else _alone(home, folder.name, waits=False)
            with contextlib.suppress(OSError), lock:
                shutil.rmtree(folder, ignore_errors=True)
