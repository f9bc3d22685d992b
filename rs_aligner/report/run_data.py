"""A run's folder, to be read: figures, rollouts, settings, what it is doing. The room reads through this.

It takes no lock and writes nothing, so it may look at a run that goes on: what is there is whole, a line that
is being written is left out. Rollouts come one at a time, so that a long run needs no memory.

Left out on purpose: checkpoints, which hold weights; mending: a damaged file is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import yaml

from rs_aligner.record import format as run_format
from rs_aligner.record.format import RunRecord
from rs_aligner.record.ledger import held_out_name, names_in, number_of, rows_in, step_name
from rs_aligner.record.ledger_line import ROWS, AnyRow
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.record.metrics import read_rows
from rs_aligner.record.open_step import read_open
from rs_aligner.record.status import read_status

if TYPE_CHECKING:
    from rs_aligner.record.attempts import Attempt  # brings the whole config, which few readers need

RunKind = Literal["train_rs", "train_sft", "train_reward_model"]
"""The command that made a run: rejection sampling, supervised training, a reward model."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it
_SUGGESTED = 5  # runs beside a folder that is none


class NotARun(ValueError):
    """A folder is not the folder of a run."""


@dataclass(frozen=True)
class RunData:
    """What a run has written so far; `open_run` finds one.

    Each call reads anew what is there then.

    Attributes:
        folder: of the run.
        kind: the command that made it.
    """

    folder: Path
    kind: RunKind

    @property
    def name(self) -> str:
        """What people call it: the folder's name."""
        return self.folder.resolve().name

    def metrics(self) -> list[dict[str, float]]:
        """The rows of `metrics.jsonl`, in order; none before the first step has ended.

        Raises:
            ValueError: a line is not a row of metrics (file and line named).
        """
        path = self.folder / "metrics.jsonl"
        return read_rows(path) if path.exists() else []

    def steps(self) -> list[int]:
        """The steps whose rollouts are in the ledger, in order; the one that is open is not among them."""
        return [number for name, number in self._written() if name == step_name(number)]

    def held_out_steps(self) -> list[int]:
        """The steps behind which answers to held-out prompts were sampled (0: before the first), in order."""
        return [number for name, number in self._written() if name == held_out_name(number)]

    def rows(self, step: int) -> Iterator[LedgerRow]:
        """The rollouts of a step, one at a time, in (prompt, rollout) order; every line is checked.

        Raises:
            ValueError: the step is not there, or its file is not as it was written (file and line named).
        """
        return self.rows_as(step_name(step), ROWS)

    def held_out_rows(self, step: int) -> Iterator[LedgerRow]:
        """The answers to held-out prompts behind a step, and errors, as of `rows`."""
        return self.rows_as(held_out_name(step), ROWS)

    def rows_as(self, name: str, decoder: msgspec.json.Decoder[AnyRow]) -> Iterator[AnyRow]:
        """What is wanted of the rows of a file; errors as of `rows`.

        Args:
            name: of the file (`record.ledger.step_name`, `held_out_name`).
            decoder: `msgspec.json.Decoder` of a struct that has some of `LedgerRow`'s fields, which takes a
                fraction of the time of all of them.
        """
        path = self._rollouts / f"{name}.jsonl"
        if not path.exists():
            kind = name.rpartition("_")[0]
            there = [found for found, _ in self._written() if found.rpartition("_")[0] == kind]
            raise ValueError(f"{path} is not there; {self._rollouts} has {_some(there) or 'none'}")
        return rows_in(path, decoder)

    def ledger_path(self, step: int) -> Path:
        """The file of a step's rollouts."""
        return self._rollouts / f"{step_name(step)}.jsonl"

    def open_step(self) -> int | None:
        """The step that is being sampled or selected, of which some rollouts are scored; None for none."""
        found = [number_of(name) for name in names_in(self._rollouts, ".open") if "step" in name]
        return max(found, default=None)

    def open_rows(self) -> list[LedgerRow]:
        """The rollouts of the open step that are scored so far, in no order; a step holds them in memory."""
        step = self.open_step()
        if step is None:
            return []
        try:
            return read_open(self._rollouts / f"{step_name(step)}.open")
        except FileNotFoundError:  # it was selected meanwhile
            return []

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of the newest start as it was given, as a tree; empty where none was written.

        Raises:
            ValueError: the file cannot be read.
        """
        path = self.folder / "config.yaml"
        if not path.exists():
            return {}
        try:
            found = yaml.load(path.read_bytes(), _LOADER)
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        return found if isinstance(found, dict) else {}

    def attempts(self) -> list[Attempt]:
        """With what each start went to work (settings of all leaves, fingerprints, versions), oldest first.

        Raises:
            ValueError: a file cannot be read.
        """
        from rs_aligner.record.attempts import Attempt, attempt_files

        return [Attempt.read(path) for path in attempt_files(self.folder / "config")]

    def status(self) -> dict[str, Any]:
        """What `status.json` says (`record/status.py`); nothing where there is none."""
        return read_status(self.folder)

    @property
    def _rollouts(self) -> Path:
        return self.folder / "rollouts"

    def _written(self) -> list[tuple[str, int]]:
        return [(name, number_of(name)) for name in names_in(self._rollouts, ".jsonl")]


def open_run(folder: str | Path) -> RunData:
    """The run in a folder.

    Raises:
        NotARun: it is no run's folder; with what is missing, and the runs above or below it.
        ValueError: it is of a format that this version does not read, or what it says of itself is damaged.
    """
    path = Path(folder).expanduser()
    record = RunRecord.read(path)
    if record is None:
        raise NotARun(_why_not(path))
    if record.command not in get_args(RunKind):
        known = ", ".join(get_args(RunKind))
        raise NotARun(f"{path} was made by {record.command or 'no command'}, and not by one of: {known}")
    return RunData(path, record.command)  # type: ignore[arg-type]  # seen in the line above


def _why_not(path: Path) -> str:
    """What is wrong with a folder that has no `run.json`, and which one may have been meant."""
    if path.is_file():
        what = f"{path} is a file, and not the folder of a run"
    elif not path.exists():
        what = f"{path} does not exist"
    else:
        what = f"{path} is not the folder of a run: it has no {run_format.FILE}"
        made = run_format.work_in(path)
        if made:
            what += f" beside its {' and '.join(made)}; it is lost, or an earlier rs_aligner made the folder"
    above = [one for one in path.resolve().parents if (one / run_format.FILE).is_file()]
    below = [str(one.parent) for one in sorted(path.glob(f"*/{run_format.FILE}"))]
    below = below or [str(one.parent) for one in sorted(path.glob(f"*/*/{run_format.FILE}"))]
    if above:
        return f"{what}. It is inside a run: {_shown(above[0])}"
    if below:
        return f"{what}. There {'is a run' if len(below) == 1 else 'are runs'} inside: {_some(below)}"
    if path.is_dir():
        return f"{what}. Name what exp_manager.explicit_log_dir was when it was made"
    there = _shown(next(one for one in path.resolve().parents if one.is_dir()))
    return f"{what}; {there} does"


def _shown(path: Path) -> str:
    """A path as people write it: from where they are, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SUGGESTED} more" if len(names) > _SUGGESTED else ""
    return ", ".join(names[:_SUGGESTED]) + more
