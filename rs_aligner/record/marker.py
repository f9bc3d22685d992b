"""Whether a rank sees the run's folder as the first one does: a file that one makes and the others look for.

Its name has a random word in it, so that no rank's cache of a network's file system can know it from before.
Left out on purpose: comparing ranks, which is the business of the loops (`trainers.agreement`).
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_PREFIX = ".seen_by_all_ranks_"
WAIT_SECONDS = 20.0  # a network's file system may take some seconds to show another host's file
_LOOK_SECONDS = 0.2


def put_marker(folder: Path, word: str) -> None:
    """Make the file, and remove those that killed starts left."""
    remove_markers(folder)
    (folder / f"{_PREFIX}{word}").touch()


def sees_marker(folder: Path, word: str, *, wait: float | None = None) -> bool:
    """Whether the file is there; waits for it a while (`WAIT_SECONDS`)."""
    until = time.monotonic() + (WAIT_SECONDS if wait is None else wait)
    while not (folder / f"{_PREFIX}{word}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def remove_markers(folder: Path) -> None:
    """Remove the file, and what killed starts left of its kind."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()
