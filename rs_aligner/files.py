"""Files: writing one so that a reader sees all of it or none of it, and what lies where in a checkpoint.

A `checksum` tells a flipped bit, not a forger: whoever can write a file can write its checksum, too.
Left out on purpose: locks. One process, the source rank, writes the files of a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import xxhash

CHECKPOINT_PART = "huggingface"  # the subfolder of a checkpoint with config and tokenizer
SETTINGS = "rs_aligner"  # the key of a reward model's config.json under which its own settings are


def checksum(content: bytes | memoryview) -> str:
    """XXH3 of these bytes: 64 bits as 16 hexadecimal digits, the same everywhere."""
    return xxhash.xxh3_64_hexdigest(content)


def write_whole(path: Path, lines: Iterable[bytes]) -> None:
    """Replaces a file by these lines, at one stroke and durably.

    The lines go to a file next to it that then takes its name, so whatever happens on the way, `path`
    holds either the old content or the new.

    Args:
        path: the file; its folder exists.
        lines: the new content; each line brings its own newline.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)


def hugging_face_part(folder: Path) -> Path:
    """Where config and tokenizer of a policy are: in a checkpoint, or the Hugging Face folder itself."""
    inside = folder / CHECKPOINT_PART
    return inside if inside.is_dir() else folder
