"""What a checkpoint holds, so that a reader knows whether all of it is there and nothing of it is another's.

`manifest.json` lies in the checkpoint's folder: the step, and of each other file its size and checksum. The
manifest has a checksum of its own. It tells what disks, copies and power losses do, not what a forger does.
Left out on purpose: what the files mean (`policy.checkpoint`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rs_aligner.files import MANIFEST, checksum_of_file, write_whole
from rs_aligner.record.sealed import seal, unseal

FORMAT = 1
PARTIAL = ".partial"  # behind the name of a checkpoint that is being written
REPLACED = ".replaced"  # behind the name of one that is giving way to a new one of its step
BROKEN = ".broken"  # behind the name of one that is set aside
_NAME = re.compile(r"step_(\d{6,})")
_OF_NFS = ".nfs"  # what NFS calls a file that somebody still reads and somebody else has removed
_SHOWN = 3  # faults in a message


class BrokenCheckpoint(ValueError):
    """A checkpoint that is torn, mixed, changed or made by others; one line says what is wrong with it."""


class CannotSave(ValueError):
    """A checkpoint that could not be written, in one line; what was there before is as it was."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds: its bytes, counted, and their checksum."""

    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: of the run, behind which it was saved; None of one that no run saved.
        files: by path below the checkpoint's folder, all but the manifest's own.
    """

    step: int | None
    files: Mapping[str, Stored]


def look(path: Path) -> Stored:
    """What a file holds; it is read once."""
    return Stored(path.stat().st_size, checksum_of_file(path))


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a checkpoint's folder, durably."""
    write_whole(folder / MANIFEST, [_text(manifest)])


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        BrokenCheckpoint: there is none, it is damaged, or another version wrote it.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise BrokenCheckpoint(f"{MANIFEST} cannot be read: {error.strerror}") from None
    try:
        found = unseal(json.loads(content))
        if found["format"] != FORMAT:
            raise BrokenCheckpoint(
                f"{MANIFEST} has the format {found['format']!r}, and {FORMAT} is read here"
            )
        files = {name: Stored(int(size), str(total)) for name, (size, total) in found["files"].items()}
        manifest = Manifest(None if found["step"] is None else int(found["step"]), files)
    except BrokenCheckpoint:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenCheckpoint(f"{MANIFEST} is damaged") from None
    if content != _text(manifest):
        raise BrokenCheckpoint(f"{MANIFEST} is damaged")
    return manifest


def problem_with(folder: Path, *, share: int = 0, shares: int = 1, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, as far as its files tell; None if nothing is.

    Args:
        folder: of the checkpoint. A name like `step_000010` has to be that of its step.
        share, shares: which part of the files is read here, of how many; names and sizes are always seen to.
        contents: whether the files are read at all.
    """
    try:
        manifest = read(folder)
        faults = list(_faults(folder, manifest, _mine(manifest, share, shares) if contents else []))
    except BrokenCheckpoint as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    if len(faults) > _SHOWN:
        faults = [*faults[:_SHOWN], f"{len(faults) - _SHOWN} more"]
    return "; ".join(faults) or None


def step_of(folder: Path) -> int | None:
    """The step that a folder's name says; None where it is no checkpoint's of a run."""
    found = _NAME.fullmatch(folder.name)
    return None if found is None else int(found[1])


def files_below(folder: Path) -> list[str]:
    """The files of a checkpoint by their paths in it, all but the manifest."""
    found = [
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder)
        for name in names
        if not name.startswith(_OF_NFS)
    ]
    return sorted(name for name in found if name != MANIFEST)


def _faults(folder: Path, manifest: Manifest, mine: list[str]) -> Iterator[str]:
    if (named := step_of(folder)) is not None and named != manifest.step:
        yield "it is no run's" if manifest.step is None else f"it is of step {manifest.step}"
    there = files_below(folder)
    for name in sorted(set(manifest.files) - set(there)):
        yield f"{name} is missing"
    for name in sorted(set(there) - set(manifest.files)):
        yield f"{name} does not belong to it"
    for name in sorted(set(there) & set(manifest.files)):
        size, wanted = (folder / name).stat().st_size, manifest.files[name].size
        if size != wanted:
            yield f"{name} has {size:,} bytes instead of {wanted:,}"
        elif name in mine and checksum_of_file(folder / name) != manifest.files[name].checksum:
            yield f"{name} has been changed (another checksum){_whose(folder, name)}"


def _mine(manifest: Manifest, share: int, shares: int) -> list[str]:
    """A part of the files; the large ones are dealt out first."""
    by_size = sorted(manifest.files, key=lambda name: (-manifest.files[name].size, name))
    return by_size[share::shares]


def _whose(folder: Path, name: str) -> str:
    """That a file is the one of another checkpoint beside this one, where it is."""
    found = look(folder / name)
    for other in sorted(folder.parent.glob("step_*")):
        try:
            if other != folder and read(other).files.get(name) == found:
                return f": it is that of {other.name}"
        except BrokenCheckpoint:
            continue
    return ""


def _text(manifest: Manifest) -> bytes:
    """The manifest's file."""
    files = {name: [one.size, one.checksum] for name, one in sorted(manifest.files.items())}
    sealed = seal({"format": FORMAT, "step": manifest.step, "files": files})
    return f"{json.dumps(sealed, indent=1)}\n".encode()
