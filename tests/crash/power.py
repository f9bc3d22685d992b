"""A disk that loses its power: what is in a folder when the machine stops, and not only the process.

While a `Disk` watches, each `os.fsync` of a file or a folder below it is what the disk surely has. `image`
makes what a start may then find: of each folder either the names that were synced or those that are there
now, of each file either what was synced or a torn beginning of what is there now, by chance. So a rename may
be on the disk before the content is, and a name may be missing whose content is there.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


class Disk:
    """What of a folder is on the disk. A context manager: it watches while it is open.

    Args:
        root: the folder; what is in it now is on the disk.
        on_sync: called behind each sync of something below the folder.
    """

    def __init__(self, root: Path, on_sync: Callable[[], None] | None = None) -> None:
        self.root, self._on_sync = root, on_sync
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._held: dict[int, int] = {}  # open files: the number of none is given to another
        self._patch = pytest.MonkeyPatch()
        self.syncs = 0

    def __enter__(self) -> Self:
        for folder, _, names in os.walk(self.root):
            self._note(Path(folder))
            for name in names:
                self._note(Path(folder) / name)
        real = os.fsync

        def fsync(file: int) -> None:
            real(file)
            if Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(self.root):
                self.syncs += 1
                self._sync(file)
                if self._on_sync is not None:
                    self._on_sync()

        self._patch.setattr(os, "fsync", fsync)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()
        for file in self._held.values():
            os.close(file)

    def image(self, to: Path, rng: random.Random) -> Path:
        """Make what a start would find in `to`, a new folder, if the power went now."""
        self._restore(self.root.stat().st_ino, self.root, to, rng)
        return to

    def _note(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            self._sync(file)
        finally:
            os.close(file)

    def _sync(self, file: int) -> None:
        """This file's content, or this folder's names, are on the disk."""
        found = os.fstat(file)
        if found.st_ino not in self._held:
            path = os.readlink(f"/proc/self/fd/{file}")
            self._held[found.st_ino] = os.open(path, os.O_RDONLY)
        if stat.S_ISDIR(found.st_mode):
            self._folders[found.st_ino] = _names(self._held[found.st_ino])
        else:
            self._files[found.st_ino] = os.pread(self._held[found.st_ino], found.st_size, 0)

    def _restore(self, number: int, now: Path | None, to: Path, rng: random.Random) -> None:
        """A folder: `now` is where it is at the moment, None where it is gone."""
        to.mkdir()
        names = self._folders.get(number, {})
        there = {} if now is None or not now.is_dir() else {one.name: one.inode() for one in os.scandir(now)}
        if now is not None and rng.random() < 0.5:
            names = there
        for name, child in names.items():
            place = now / name if now is not None and there.get(name) == child else None
            if child in self._folders or (place is not None and place.is_dir()):
                self._restore(child, place, to / name, rng)
            else:
                (to / name).write_bytes(self._content(child, place, rng))

    def _content(self, number: int, now: Path | None, rng: random.Random) -> bytes:
        synced = self._files.get(number)
        current = now.read_bytes() if now is not None else b""
        if synced is not None and (rng.random() < 0.5 or not current.startswith(synced)):
            return synced
        begun = len(synced or b"")
        return current[: begun + rng.randint(0, max(0, len(current) - begun))]


def _names(folder: int) -> dict[str, int]:
    with os.scandir(folder) as found:
        return {one.name: one.inode() for one in found}
