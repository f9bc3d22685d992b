"""What is measured of a step, and the file it is written to.

`step_metrics` are the figures that follow from the groups and the selection alone. The trainer adds what
only it knows: loss, learning rate, times, validation. `MetricsFile` is a run's `metrics.jsonl`: one object
a step, one file for all starts of a run, no step twice. `metrics.sums` beside it has a checksum of each row,
by which a row that was damaged or lost is told when a run goes on.

Left out on purpose: gathering over ranks (the groups handed in are those of the whole step) and any
other sink. A value that is undefined, such as the mean reward of a step that was never scored, is absent.
It is never NaN and never 0.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from rs_aligner.files import checksum, write_whole
from rs_aligner.rollout import Group, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which is not needed here


def step_metrics(
    groups: Sequence[Group], selection: Selection, *, sampled: Sequence[Group] | None = None
) -> dict[str, float]:
    """Measures the rollouts of a whole step.

    Args:
        groups: all groups of the step, in data order.
        selection: of these groups.
        sampled: what means are taken over: the groups with the rollouts that were sampled whatever was scored
            before; None for all of them.

    Returns:
        `reward/mean` and `reward/std` (the population's, over the scored ones of `sampled`),
        `reward/best_of_n` (mean of the maxima of its groups with a score) and `response_length/mean` (tokens,
        over all of it, the ending token included); `reward/kept_mean` (over all that is kept),
        `rollouts/total`, `/scored`, `/failed`, `/timed_out` (failed by
        `judge.time_limit`), `/kept`, `/truncated` (counts) and `rejected/...` (a count for
        each reason, as `Selection.reason_counts`). What is undefined is absent.

    Raises:
        ValueError: groups and selection differ in size.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_scored = sum(isinstance(score, Score) for group in groups for score in group.scores)
    counted = groups if sampled is None else sampled
    rewards_by_group = [[s.reward for s in group.scores if isinstance(s, Score)] for group in counted]
    rewards = [reward for group in rewards_by_group for reward in group]
    lengths = [len(rollout.token_ids) for group in counted for rollout in group.rollouts]
    kept_scores = [group.scores[place] for group, place in selection.kept(groups)]
    kept = [score.reward for score in kept_scores if isinstance(score, Score)]
    metrics: dict[str, float] = {
        "rollouts/total": len(rollouts),
        "rollouts/scored": num_scored,
        "rollouts/failed": len(rollouts) - num_scored,
        "rollouts/timed_out": sum(
            isinstance(score, ScoreFailure) and score.is_late for group in groups for score in group.scores
        ),
        "rollouts/kept": len(kept),
        "rollouts/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts),
        **selection.reason_counts(),
    }
    if lengths:
        metrics["response_length/mean"] = fmean(lengths)
    if rewards:
        metrics["reward/mean"] = fmean(rewards)
        metrics["reward/std"] = pstdev(rewards)
        metrics["reward/best_of_n"] = fmean(max(group) for group in rewards_by_group if group)
    if kept:
        metrics["reward/kept_mean"] = fmean(kept)
    return metrics


class MetricsFile:
    """A run's `metrics.jsonl`, kept as one file over all its starts.

    Opening it drops the rows of steps that the run is about to make anew, and a last line that a crash
    cut short. Each row is on the disk when `append` returns.
    """

    def __init__(self, path: str | Path, last_step: int = -1, *, again_until: int = -1) -> None:
        """Opens the file, making it where there is none.

        Args:
            path: the file; its folder exists.
            last_step: the step of the checkpoint that the run continues from. -1, for a run that starts anew,
                drops all but what `again_until` says.
            again_until: the last of the steps that are trained again from the ledger; their rows stay, as far
                as they follow the checkpoint's without a gap.

        Raises:
            ValueError: a line that is not the last is not a row of metrics, or a row is not as it was written
                (file and line named).
        """
        self.path = Path(path)
        rows = checked_rows(self.path)
        kept = [row for row in rows if row["step"] <= last_step]
        for row in rows:
            step, before = int(row["step"]), int(kept[-1]["step"]) if kept else last_step
            is_next = step == before + 1 or (before < 0 and step == 1)  # there may be no row of step 0
            if last_step < step <= again_until and is_next:
                kept.append(row)
        self.last_step, self._file, self._sums = self._begin(kept)

    def append(self, metrics: Mapping[str, float | None]) -> None:
        """Writes the row of a step; values that are None, NaN or infinite are left out.

        Raises:
            ValueError: there is no `step`, or it does not come after the last one.
        """
        row = {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
        step = row.get("step")
        if step is None or step <= self.last_step:
            raise ValueError(f"{self.path}: a row needs a step above the last, {self.last_step}, not {step}")
        self.last_step = int(step)
        line = _to_line(row)
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._sums.write(_sum(line))
        self._sums.flush()

    def forget_from(self, step: int) -> None:
        """Drops the rows of this step and of those behind it, which are not trained again but made anew."""
        self.close()
        rows = [row for row in read_rows(self.path) if row["step"] < step]
        self.last_step, self._file, self._sums = self._begin(rows)

    def _begin(self, rows: Sequence[Mapping[str, float]]) -> tuple[int, BinaryIO, BinaryIO]:
        """Makes the file one of these rows; returns the last's step, and the files to write behind it."""
        lines = [_to_line(row) for row in rows]
        sums = _sums_of(self.path)
        write_whole(sums, map(_sum, lines))  # first: a checksum without its row is a lost row
        write_whole(self.path, lines)
        last = max((int(row["step"]) for row in rows), default=-1)
        return last, self.path.open("ab"), sums.open("ab")

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._sums.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sums_of(path: Path) -> Path:
    return path.with_suffix(".sums")


def _sum(line: bytes) -> bytes:
    return checksum(line).encode() + b"\n"


def _to_line(row: Mapping[str, float]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def checked_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics file, which need not exist, each compared with its checksum.

    Raises:
        ValueError: as `read_rows`, or a row is not as it was written, or is lost.
    """
    rows, sums = read_rows(path) if path.exists() else [], _sums_of(path)
    known = sums.read_bytes().splitlines(keepends=True) if sums.exists() else []
    known = [line for line in known if line.endswith(b"\n")]  # the last one may be cut short
    written = [_sum(_to_line(row)) for row in rows][: len(known)]
    if written != known:
        pairs = enumerate(zip(written, known, strict=False), start=1)
        number = next((number for number, (one, other) in pairs if one != other), len(written) + 1)
        raise ValueError(
            f"{path}:{number}: not as it was written, by its checksum in {sums.name}. Put good copies of "
            f"both back; or remove {sums.name} to take the rows as they are"
        )
    return rows


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a last line that a crash cut short is left out.

    Raises:
        ValueError: another line is not a row of metrics (file and line named).
    """
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] + 0  # a number
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):  # behind the last newline: nothing, or a line cut short
                raise ValueError(f"{path}:{number}: not a row of metrics ({error!r})") from error
        else:
            rows.append(row)
    return rows
