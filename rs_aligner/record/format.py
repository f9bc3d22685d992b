"""What a run's folder is: its format, which command made it, and whether what it should have is there.

`run.json` says it, written when a run begins to write and after each checkpoint. A folder of another format
is refused by name; so is one whose checkpoints are gone, since to start there again would put new figures and
rollouts in the place of old ones. A run that was killed before its first checkpoint has none, and goes on.

Left out on purpose: reading other formats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from rs_aligner import __version__
from rs_aligner.files import write_whole
from rs_aligner.record.sealed import seal, unseal

FORMAT = 1
"""Of the folders that this version writes and reads. Raise it when an older version would misread one."""
FILE = "run.json"
_KEY = "exp_manager.explicit_log_dir"


class OtherFormat(ValueError):
    """A folder has another format than this version reads."""


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says.

    Attributes:
        command: that made the folder, such as `train_rs`.
        attempts: how many starts have begun to write.
        saved: the step of the checkpoint that was written last; None before the first.
        format: of the folder.
        rs_aligner: the version that wrote this.
    """

    command: str
    attempts: int = 0
    saved: int | None = None
    format: int = FORMAT
    rs_aligner: str = __version__

    def write(self, folder: Path) -> None:
        """Write `run.json`, whole."""
        write_whole(folder / FILE, [json.dumps(seal(asdict(self))).encode() + b"\n"])

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What the folder's `run.json` says; None where there is none.

        Raises:
            ValueError: it cannot be read, or is of a format that this version does not know.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            _check_format(folder, found)
            record = unseal(found)
            if set(record) != {one.name for one in fields(cls)}:
                raise ValueError("it has other keys than this version knows")
            return cls(**record)
        except OtherFormat:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be read: {error}; put a good copy back, or start in another folder"
            ) from None


def _check_format(folder: Path, found: Any) -> None:
    """Look at a record's format before anything else of it: another one may have no checksum."""
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number != FORMAT:
        raise OtherFormat(
            f"{_KEY}={folder} has format {number}, written by rs_aligner {found.get('rs_aligner')}, and this "
            f"is {__version__}, which reads format {FORMAT}: go on with that version, or in another folder"
        )


def check(folder: Path, command: str, checkpoints: Sequence[Path]) -> RunRecord:
    """See that a run may begin, or go on, in a folder.

    Args:
        folder: the run's; it need not exist.
        command: that is to work there.
        checkpoints: those that are there under their names.

    Returns:
        What `run.json` says, or a new record.

    Raises:
        ValueError: the folder is of another format, or of another command, or has lost its checkpoints; with
            what can be done.
    """
    found, made = RunRecord.read(folder), work_in(folder)
    if found is None:
        if not made and not checkpoints:
            return RunRecord(command)
        if (folder / "config").is_dir():
            raise ValueError(f"{folder / FILE} is missing: put it back, or start in another folder")
        raise ValueError(
            f"{_KEY}={folder} has {_and(made) or 'checkpoints'} and no {FILE}: an earlier rs_aligner made "
            "it, before folders had a format; go on with that version, or start in another folder"
        )
    if found.command != command:
        raise ValueError(
            f"{_KEY}={folder} is a run of {found.command}.py, not of {command}.py: choose another folder"
        )
    if found.saved is not None and not checkpoints:
        aside = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
        raise ValueError(
            f"{_KEY}={folder} has lost its checkpoints: step_{found.saved:06d} was written, and "
            + (f"only {', '.join(aside)} is there. " if aside else "none is there. ")
            + "Put checkpoints/ back; or start in another folder, or remove "
            + f"{_and([*made, FILE])} there yourself"
        )
    return found


def work_in(folder: Path) -> list[str]:
    """What of a run's work lies in a folder, besides checkpoints: figures, rollouts."""
    metrics, rollouts = folder / "metrics.jsonl", folder / "rollouts"
    found = []
    if metrics.is_file() and metrics.stat().st_size:
        found.append(metrics.name)
    if rollouts.is_dir() and any(rollouts.iterdir()):
        found.append(f"{rollouts.name}/")
    return found


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
