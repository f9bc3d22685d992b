"""The record of every rollout, score and selection of a run, also the rejected: files, and their names.

One JSONL file a step, `rollouts/step_000001.jsonl`, one rollout a line, in (prompt, rollout) order. Each
line stands alone, prompt and metadata included: that repeats a prompt N times, and in return `grep`, `jq`
and pandas read a file as it is. A step is written whole or not at all, when it is selected; until then its
scored rollouts lie in the folder `step_000001.open` (`open_step`). Answers to held-out prompts have such
files, too, `held_out_000010.jsonl`, by the step behind which they were sampled. What is in a line, and how a
wrong one is told, is in `ledger_line`.

A rollout of an earlier step is written again only where it is trained on again, so a pool that several steps
train on is there once, in the step that sampled it. A step that trains on none of them has one as a witness,
so that no file is empty. Left out on purpose: compression.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rs_aligner.files import make_folder, write_whole
from rs_aligner.record.ledger_line import (
    KEPT_MARK,
    KEPT_ROWS,
    ROWS,
    AnyRow,
    check_line,
    decoded,
    to_line,
    with_exact_log_probs,
)
from rs_aligner.record.ledger_row import HELD_OUT, KeptRow, LedgerRow, Stamp, judged_of, row_of, rows_of
from rs_aligner.rollout import Group, Prompt, Rollout, Score

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which reading a ledger does not need

_NAME = re.compile(r"(step|held_out)_(\d{6,})(\.jsonl|\.open)")
BROKEN = ".broken"


def step_name(step: int) -> str:
    """What the file of a training step is called, and the folder while it is open."""
    return f"step_{step:06d}"


def held_out_name(step: int) -> str:
    """The same of a look at held-out prompts behind a step; 0 before the first."""
    return f"held_out_{step:06d}"


def number_of(name: str) -> int:
    """The step in such a name."""
    return int(name.rsplit("_", 1)[1])


class Ledger:
    """The ledger of a run: a folder of steps.

    Args:
        folder: where; made where there is none.
        made_by: fingerprint of the settings that rows are made under, which is written into them.
        check_owner: raises `LeaseLost` where the folder is another run's by now; asked before each write.
    """

    def __init__(
        self, folder: str | Path, made_by: str = "", check_owner: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.made_by, self._check_owner = Path(folder), made_by, check_owner
        make_folder(self.folder)

    @classmethod
    def existing(cls, folder: str | Path) -> Ledger:
        """A ledger to read.

        Raises:
            ValueError: there is none.
        """
        if not _steps(Path(folder)):
            raise ValueError(f"{folder} is not a ledger: it has no step_000001.jsonl or the like")
        return cls(folder)

    def append(
        self, step: int, groups: Sequence[Group], selection: Selection, *, everything: bool = False
    ) -> None:
        """Writes a step: one line per rollout, all of them or none; then it is not open any more.

        Args:
            step: counted from 1; a step that is there already is replaced.
            groups: in data order, each with a score or a failure for every rollout.
            selection: of these groups.
            everything: also the rollouts of earlier policies that are not kept.

        Raises:
            ValueError: the step is below 1, or groups, scores and selection differ in size.
        """
        if step < 1:
            raise ValueError(f"the ledger's steps count from 1, not {step}")
        rows = self._written(step, groups, selection, everything)
        self._write(step_name(step), rows)

    def append_held_out(self, step: int, groups: Sequence[Group]) -> None:
        """Writes the answers to held-out prompts behind a step (0: before the first)."""
        stamp = Stamp(step, self.made_by)
        rows = [
            row_of(group.prompt, judged, stamp, reason=HELD_OUT)
            for group in groups
            for judged in judged_of(group)
        ]
        self._write(held_out_name(step), rows)

    def read(self, step: int, *, kept_only: bool = False) -> list[LedgerRow]:
        """Reads a step back, in (prompt, rollout) order.

        Args:
            step: which.
            kept_only: leaves out what was not kept; all is checked.

        Raises:
            ValueError: the step is not there, or its file is not as it was written (file and line named).
        """
        self._require(step)
        rows = self._rows(step_name(step), ROWS, KEPT_MARK if kept_only else b"")
        return [with_exact_log_probs(row) for row in rows if row.kept or not kept_only]

    def read_named(self, name: str) -> list[LedgerRow]:
        """A whole file of this name (`step_name`, `held_out_name`), which is there; raises as `read`."""
        return [with_exact_log_probs(row) for row in self._rows(name, ROWS)]

    def glance(self, name: str) -> list[KeptRow]:
        """What readers of whole runs need of a file of this name, which is there; all of it is checked.

        Raises:
            ValueError: the file is not as it was written (file and line named).
        """
        return list(self._rows(name, KEPT_ROWS))

    def kept(self, step: int) -> list[Group]:
        """What a step trained on: prompts by id and row, rollouts by text and policy version, without tokens.

        Raises:
            ValueError: as of `read`.
        """
        self._require(step)
        groups: dict[int, Group] = {}
        for row in self._rows(step_name(step), KEPT_ROWS, KEPT_MARK):
            if row.kept and row.reward is not None:
                prompt = Prompt(row.prompt_id, "", (), row=row.prompt_row)
                group = groups.setdefault(row.group, Group(prompt, [], []))
                group.rollouts.append(
                    Rollout(row.group, row.index, (), row.response, "stop", row.policy_version)
                )
                group.scores.append(Score(row.reward))
        return list(groups.values())

    def difference(
        self, step: int, groups: Sequence[Group], selection: Selection, *, everything: bool = False
    ) -> str | None:
        """In which rollout a selection is not that of the step's file, as a line; None where it is the same.

        Args:
            step, groups, selection, everything: as for `append`.
        """
        there, path = self.glance(step_name(step)), self.path(step_name(step))
        found = self._written(step, groups, selection, everything)
        for number, (old, new) in enumerate(zip(there, found, strict=False), start=1):
            if _identity(old) != _identity(new):
                return f"{path}:{number} is another rollout than the step chooses from now"
            if old.kept != new.kept:
                return (
                    f"{path}:{number} says of rollout {old.index} of prompt {old.prompt_id}: {old.reason!r}; "
                    f"the selection now says {new.reason!r}"
                )
        if len(there) != len(found):
            return f"{path} has {len(there)} rollouts, and the step now comes to {len(found)}"
        return None

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        return _steps(self.folder)

    def names(self) -> list[str]:
        """Names of all that is there, files or open folders, in the order in which a run makes them."""
        return names_in(self.folder)

    def path(self, name: str) -> Path:
        """The file of this name."""
        return self.folder / f"{name}.jsonl"

    def open_path(self, name: str) -> Path:
        """Its folder while it is open."""
        return self.folder / f"{name}.open"

    def set_aside(self, name: str) -> Path:
        """Takes a broken file out of the way; returns where it is now."""
        path = self.path(name)
        return path.replace(path.with_name(path.name + BROKEN))

    def close(self, name: str) -> None:
        """Removes the folder of what is open no more."""
        shutil.rmtree(self.open_path(name), ignore_errors=True)

    def forget(self, name: str) -> None:
        """Removes what is there of this name."""
        self.path(name).unlink(missing_ok=True)
        self.close(name)

    def _require(self, step: int) -> None:
        if not self.path(step_name(step)).exists():
            raise ValueError(f"the ledger {self.folder} has no step {step}; it has {self.steps() or 'none'}")

    def _rows(self, name: str, decoder: msgspec.json.Decoder[AnyRow], mark: bytes = b"") -> Iterator[AnyRow]:
        return rows_in(self.path(name), decoder, mark)

    def _written(
        self, step: int, groups: Sequence[Group], selection: Selection, everything: bool
    ) -> list[LedgerRow]:
        """The rows that the file of a step has; how many they are is not in them yet."""
        rows = list(rows_of(groups, selection, Stamp(step, self.made_by)))
        new = [row for row in rows if everything or row.kept or row.policy_version >= step - 1]
        return new or rows[:1]

    def _write(self, name: str, rows: Sequence[LedgerRow]) -> None:
        write_whole(
            self.path(name), (to_line(replace(row, num_rows=len(rows))) for row in rows), self._check_owner
        )
        self.close(name)


def _identity(row: KeptRow | LedgerRow) -> tuple[Any, ...]:
    return row.group, row.index, row.policy_version, row.response  # a prompt's id may be its file and line


def names_in(folder: Path, *endings: str) -> list[str]:
    """Names of what is in a ledger's folder, in the order in which a run makes them; none without one.

    Args:
        folder: of the ledger; nothing is made of it.
        endings: `.jsonl` for files, `.open` for folders that are open; none for both.
    """
    if not folder.is_dir():
        return []
    found = [match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    order = sorted(
        {(int(one[2]), one[1] == "held_out", one[1]) for one in found if not endings or one[3] in endings}
    )
    return [f"{kind}_{number:06d}" for number, _, kind in order]


def rows_in(path: Path, decoder: msgspec.json.Decoder[AnyRow], mark: bytes = b"") -> Iterator[AnyRow]:
    """The rows of a file whose lines have a mark; all lines are checked, and that none is missing.

    Args:
        path: the file, under the name that its step gives it.
        decoder: of what is wanted of a row.
        mark: bytes that are in the lines that are wanted.

    Raises:
        ValueError: the file is not as it was written (file and line named).
    """
    number, expected, due = 0, 0, number_of(path.stem)
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            step, expected = check_line(line, place)
            if step != due:
                raise ValueError(f"{place}: a row of step {step}")
            if number > expected:
                raise ValueError(f"{place}: there should be {expected} rows only")
            if mark in line:
                yield decoded(line, place, decoder)
    if number != expected or not number:
        raise ValueError(f"{path}:{number + 1}: missing; {expected or 'some'} rows were written")


def _steps(folder: Path) -> list[int]:
    return [number_of(name) for name in names_in(folder, ".jsonl") if name == step_name(number_of(name))]
