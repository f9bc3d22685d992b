"""A run's folder: config, metrics, ledger, checkpoints and the exported policy, over all its starts.

    config.yaml      the resolved config of the latest start
    config/          with what each start went to work: attempt_01.yaml and so on
    run.json         the folder's format, and which checkpoint was written last
    metrics.jsonl    one object a step; metrics.sums has a checksum of each
    rollouts/        the ledger, by step; the answers to held-out prompts; the step that is open
    checkpoints/     what the run continues from
    final/           the trained policy as a Hugging Face folder
    report.html      the run as a page; report/ has its rollouts (the room `report`)
    logs/            TensorBoard's and W&B's files
    owner/           who has the folder, while a run is at work there
    status.json      what the run is doing

Rank 0 writes; the other ranks have the same object and write nothing but the scored rollouts of their
replicas while a step is open. The checkpoint is the truth for the weights, the ledger for rollouts and
scores: what it holds behind the checkpoint is trained again when a run continues, and keeps its row of
metrics.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rs_aligner.config import ExpManagerBase
from rs_aligner.exit_status import GoesOn
from rs_aligner.files import make_folder
from rs_aligner.record.attempts import Attempt
from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.leftovers import Leftovers
from rs_aligner.record.manifest import BROKEN, PARTIAL, REPLACED, CannotSave
from rs_aligner.record.metrics import MetricsFile, read_rows
from rs_aligner.record.room import check_room
from rs_aligner.record.sinks import Logger, Sampled, ShowsRollouts
from rs_aligner.record.start import Start
from rs_aligner.record.status import Status
from rs_aligner.stopping import Stopped

_logger = logging.getLogger("rs_aligner")
NEWEST_KEPT = 2  # so that there is one to go back to when the newest turns out to be broken


class Saveable(Protocol):
    """What can write a checkpoint (a policy)."""

    def save(self, folder: Path, counters: dict[str, Any]) -> None: ...


class Run:
    """The folder of a run. A context manager: entering it takes the folder, so that no other run works there.

    Leaving it closes its files and loggers, as failed on an error, and gives the folder back. The error gets
    a note of where a new start goes on (`exit_status.GoesOn`).

    Args:
        config: the `exp_manager` section.
        is_first: whether this is the first rank, which writes.
        loggers: further sinks of the figures, on the writing rank.
        command: which command's run it is, such as `train_rs`.

    Attributes:
        start: who has the folder, and with what it is gone on with.

    Raises:
        ValueError: `resume_if_exists` is false and the folder has a checkpoint.
    """

    def __init__(
        self,
        config: ExpManagerBase,
        *,
        is_first: bool,
        loggers: Sequence[Logger] = (),
        command: str = "",
    ) -> None:
        self.config, self.is_first, self.loggers = config, is_first, loggers
        self.folder = Path(config.explicit_log_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.final = self.folder / "final"
        self.rollouts = self.folder / "rollouts"
        self.start = Start(config, command, is_first=is_first)
        self._status: Status | None = None
        self._is_open = False
        self._metrics: MetricsFile | None = None
        self._sampled: list[tuple[int, Sampled]] = []  # of steps without figures
        self.last_checkpoint = next(iter(self.newest_first()), None)
        if self.last_checkpoint is not None and not config.resume_if_exists:
            raise ValueError(
                f"exp_manager.explicit_log_dir={self.folder} has the checkpoint {self.last_checkpoint.name}, "
                "and exp_manager.resume_if_exists is false: choose another folder, or set it to true"
            )

    @property
    def fingerprint(self) -> str:
        """Of what decides rollouts and scores, by `prepare`; "" where nobody has said it."""
        return self.start.fingerprint

    @property
    def selects_anew(self) -> bool:
        """Whether a step that is trained again may be selected by other settings than it was."""
        return self.start.has_changed

    def check_owner(self) -> None:
        """See that the folder is still this run's; to be called before whatever is written there.

        Raises:
            LeaseLost: another run has it now.
        """
        self.start.check_owner()

    def prepare(self, attempt: Attempt) -> None:
        """Say with what the run is to go to work, and see whether it may; on the writing rank.

        Raises:
            ChangedSettings: it would mix two runs, and `exp_manager.allow_changes` does not let it.
            ValueError: with what the run was made before cannot be read.
        """
        self.start.prepare(attempt, self.newest_first())

    def share(self, gather: Callable[[Any], list[Any]]) -> None:
        """Tell the other ranks what the writing one knows; every rank must call it.

        Args:
            gather: the items of all ranks that speak for a replica, the first rank's first.
        """
        self.start.take(self.newest_first())
        self.start.share(gather)

    def open(self, last_step: int) -> Leftovers | None:
        """Begin to write behind the checkpoint of step `last_step` (-1: there is none).

        Returns:
            On the writing rank, what earlier starts left behind it, and the ledger.
        """
        left = None
        if self.is_first:
            self.start.take(self.newest_first())
            make_folder(self.folder)
            self.start.begin()
            left = Leftovers(Ledger(self.rollouts, self.fingerprint, self.check_owner), last_step)
            self._metrics = MetricsFile(self.folder / "metrics.jsonl", last_step, again_until=left.last_row)
        self._is_open = True
        return left

    def forget_from(self, step: int) -> None:
        """Drop the figures of this step and of those behind it, which are about to be made anew."""
        if self._metrics is not None:
            self.check_owner()
            self._metrics.forget_from(step)

    def sampled(self, step: int, sampled: Sampled) -> None:
        """Hand over what a step sampled, or a look behind it; sinks see it with the figures of the step."""
        if self._metrics is not None:
            self._sampled.append((step, sampled))

    def figures(self) -> list[dict[str, float]]:
        """What is recorded of every step; nothing on ranks that do not write."""
        return [] if self._metrics is None else read_rows(self._metrics.path)

    def record(self, metrics: dict[str, float]) -> None:
        """Write the figures of a step, everywhere; those that an earlier start wrote stay."""
        step, seen, self._sampled = int(metrics["step"]), self._sampled, []
        if self._metrics is None or step <= self._metrics.last_step:
            return
        self.start.check_owner()
        self._metrics.append(metrics)
        figures = {key: value for key, value in metrics.items() if key != "step" and math.isfinite(value)}
        for logger in self.loggers:
            if isinstance(logger, ShowsRollouts):
                for sampled in [sampled for number, sampled in seen if number == step]:
                    logger.log_rollouts(sampled, step)
            logger.log_metrics(figures, step=step)

    def prepare_checkpoints(self, wanted: int) -> None:
        """Clear up behind a start that was killed, and see to it that there is room; every rank calls this.

        Args:
            wanted: about as many bytes as a checkpoint has.

        Raises:
            CannotSave: there is no room for one beside those that are there.
        """
        self._clear_up()
        try:
            check_room(self.checkpoints, wanted)
        except OSError as error:
            raise CannotSave(f"{self.checkpoints} cannot take a checkpoint: {error}") from None

    def newest_first(self) -> list[Path]:
        """The checkpoints that are there under their names, whether they are good or not."""
        return sorted(self._finished(), key=_step_of, reverse=True)

    def continue_from(self, checkpoint: Path, broken: Mapping[Path, str]) -> None:
        """Note the checkpoint that was loaded, and set aside those that could not be; every rank calls this.

        Args:
            checkpoint: the newest good one.
            broken: those that are newer, with what is wrong with each.
        """
        self.last_checkpoint = checkpoint
        if not self.is_first:
            return
        for path, problem in broken.items():
            aside = _free(path.with_name(path.name + BROKEN))
            path.rename(aside)
            _logger.warning(
                "%s; it is set aside as %s, and the run goes on from %s",
                *(problem, aside.name, checkpoint.name),
            )

    def save(self, policy: Saveable, step: int, counters: dict[str, Any]) -> None:
        """Write a checkpoint (every rank must call it), then remove those that need not stay.

        Raises:
            CannotSave: it could not be written; the ones before are as they were.
        """
        self.start.check_owner()
        path = self.checkpoint(step)
        policy.save(path, counters)
        self.last_checkpoint = path
        if self.is_first:
            self.start.note_saved(step)
            for superfluous in self._superfluous():
                left = superfluous.with_name(superfluous.name + PARTIAL)
                superfluous.rename(left)  # no checkpoint any more, once it is not whole
                shutil.rmtree(left)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoints / f"step_{step:06d}"

    def __enter__(self) -> Self:
        self.start.take(self.newest_first())
        if self.is_first:
            self._status = Status(self.folder, self.check_owner)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._can_go_on(error):
            last = self.last_checkpoint
            behind = None if last is None else (_step_of(last), last)
            error.add_note(GoesOn.told(behind, resumes=self.config.resume_if_exists))
        try:
            if self._status is not None:
                self._status.end(error)
        finally:
            self.close("success" if error is None or isinstance(error, Stopped) else "failed")

    def _can_go_on(self, error: BaseException) -> bool:
        """Whether a new start may go on: what ends one before its folder is open may speak against that."""
        return isinstance(error, Stopped) or (self._is_open and not isinstance(error, LeaseLost))

    def close(self, status: str = "success") -> None:
        """Close files and loggers, and give the folder back."""
        with contextlib.ExitStack() as stack:  # one that fails keeps no other from it
            stack.callback(self.start.give_back)
            for logger in reversed(self.loggers):
                stack.callback(logger.finalize, status)
            if self._metrics is not None:
                self._metrics.close()

    def _finished(self) -> list[Path]:
        """Checkpoints under their names; one that is being written still has another."""
        return [p for p in self.checkpoints.glob("step_*") if p.is_dir() and p.name[5:].isdigit()]

    def _clear_up(self) -> None:
        """End what an earlier start was about when it was killed: a half-written checkpoint, a replaced one.

        Each rank may try it; they all find the same afterwards.
        """
        for left in self.checkpoints.glob("step_*" + REPLACED):
            whole = left.with_name(left.name.removesuffix(REPLACED))
            with contextlib.suppress(OSError):  # another rank was first
                if not whole.exists():
                    left.rename(whole)
        if self.is_first:
            for left in (*self.checkpoints.glob("*" + REPLACED), *self.checkpoints.glob("*" + PARTIAL)):
                shutil.rmtree(left)

    def _superfluous(self) -> list[Path]:
        """All but the newest ones and the `save_top_k` best by the monitored figure."""
        params = self.config.checkpoint_callback_params
        if params.save_top_k < 0:
            return []
        figures = {
            int(row["step"]): row.get(params.figure) for row in read_rows(self.folder / "metrics.jsonl")
        }
        sign = 1 if params.mode == "max" else -1

        def rank(path: Path) -> tuple[float, int]:
            figure = figures.get(_step_of(path))
            return (float("-inf") if figure is None else sign * figure, _step_of(path))

        finished = self.newest_first()
        best = sorted((p for p in finished if rank(p)[0] > float("-inf")), key=rank, reverse=True)
        return sorted(set(finished[NEWEST_KEPT:]) - set(best[: params.save_top_k]))


def _free(path: Path) -> Path:
    """The path, or with `_2`, `_3`, ... behind it the first that nothing has."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}_{number}")
    return found


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])
