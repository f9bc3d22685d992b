"""Files: writing one so that a reader sees all of it or none of it, and what lies where in a checkpoint.

A `checksum` tells a flipped bit, not a forger: whoever can write a file can write its checksum, too.
Left out on purpose: locks. One process, the source rank, writes the files of a run, but those of its
checkpoints, of which every rank writes its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

CHECKPOINT_PART = "huggingface"  # the subfolder of a checkpoint with config and tokenizer
SETTINGS = "rs_aligner"  # the key of a reward model's config.json under which its own settings are
MANIFEST = "manifest.json"  # the file of a checkpoint that says what the others hold
_PIECE = 1 << 22  # bytes read at once
_READERS = 4  # files read at once


def cache_folder() -> Path:
    """The package's folder in the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), there or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rs_aligner"


def checksum(content: bytes | memoryview) -> str:
    """XXH3 of these bytes: 64 bits as 16 hexadecimal digits, the same everywhere."""
    return xxhash.xxh3_64_hexdigest(content)


def running_checksum() -> xxhash.xxh3_64:
    """A checksum that grows: `update(bytes)`, then `hexdigest()`, as `checksum` of all of them."""
    return xxhash.xxh3_64()


def checksum_of_file(path: Path) -> str:
    """The checksum of what a file holds; the file is read once, in pieces."""
    found, piece = running_checksum(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            found.update(piece[:size])
    return found.hexdigest()


def checksums_of_files(paths: Sequence[Path]) -> list[str]:
    """The checksums of several files, a few of them read at a time."""
    with ThreadPoolExecutor(_READERS) as readers:  # reading and summing both leave Python's lock
        return list(readers.map(checksum_of_file, paths))


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder are on the disk; its files are synced by themselves."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """See to it that all files below a folder, and their names, are on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with (Path(place) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there; their names are on the disk then."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_whole(path: Path, lines: Iterable[bytes], check: Callable[[], None] = lambda: None) -> None:
    """Replaces a file by these lines, at one stroke and durably.

    The lines go to a file next to it that then takes its name, so whatever happens on the way, `path`
    holds either the old content or the new.

    Args:
        path: the file; its folder exists.
        lines: the new content; each line brings its own newline.
        check: asked before the file takes its name; what it raises leaves the old content.
    """
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.unlink(missing_ok=True)  # a stopped process may have it open, and wake up
    with _gone_if_failed(unfinished), unfinished.open("xb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    check()  # behind it the folder may be another's, and so may the unfinished file
    with _gone_if_failed(unfinished):
        unfinished.replace(path)
    sync_folder(path.parent)  # the new name, too, is on the disk


def put(path: Path, content: bytes) -> None:
    """Replaces a file at one stroke, without waiting for the disk: for what can be made again.

    Args:
        path: the file; its folder exists. Several processes may put it at once, and one of them is the last.
        content: the new content.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with _gone_if_failed(unfinished):
        unfinished.write_bytes(content)
        unfinished.replace(path)


@contextmanager
def _gone_if_failed(unfinished: Path) -> Iterator[None]:
    """No half of a file stays, whatever failed: what brought the lines, the disk, the new name."""
    try:
        yield
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is something else; the file is named.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} should be a JSON object, not {type(found).__name__}")
    return found


def json_object_if_any(path: Path) -> dict[str, Any]:
    """A JSON object of a folder that may be anything; an empty one where there is none that can be read."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def hugging_face_part(folder: Path) -> Path:
    """Where config and tokenizer of a policy are: in a checkpoint, or the Hugging Face folder itself."""
    inside = folder / CHECKPOINT_PART
    return inside if inside.is_dir() else folder
