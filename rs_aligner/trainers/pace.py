"""Where a loop stands: how it continues, what is due after a step, and when it has to stop.

A loop stops for a signal or because its time is nearly up, and then saves first: nothing long is begun behind
it. How long a step and a checkpoint may take is what they took so far. Left out on purpose: who asks for a
stop (`stopping`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rs_aligner import progress, stopping
from rs_aligner.data import DataOrder
from rs_aligner.record.manifest import BrokenCheckpoint
from rs_aligner.record.run import Run
from rs_aligner.stopping import MARGIN
from rs_aligner.trainers.agreement import check_folder
from rs_aligner.trainers.protocols import Collective, Trainee

_logger = logging.getLogger("rs_aligner")


def resume(run: Run, trainee: Trainee[Any], order: DataOrder) -> dict[str, Any]:
    """Continue from the newest checkpoint that is good; those after it are set aside. Every rank calls it.

    Returns:
        The counters that the checkpoint was saved with; `{"step": -1}` for a new run.

    Raises:
        BrokenCheckpoint: there are checkpoints, and none of them is good; they are left as they are.
        CannotSave: there is no room for a checkpoint.
    """
    run.share(trainee.gather)
    check_folder(trainee, run.folder, is_first=run.is_first)
    run.prepare_checkpoints(trainee.checkpoint_bytes())
    broken: dict[Path, str] = {}
    for checkpoint in run.newest_first():
        try:
            counters = trainee.load(checkpoint)  # of the same opinion on every rank
        except BrokenCheckpoint as error:
            broken[checkpoint] = str(error)
            continue
        run.continue_from(checkpoint, broken)
        order.load_state_dict(counters["sampler"])
        _logger.info("continuing behind step %d of %s", counters["step"], checkpoint)
        return counters
    if broken:
        raise BrokenCheckpoint(
            f"{run.checkpoints} has no good checkpoint: {'; '.join(broken.values())}. Put a good copy of one "
            "back, or start anew with another exp_manager.explicit_log_dir"
        )
    return {"step": -1}


def is_due(step: int, interval: int | None) -> bool:
    """Whether something done every so many steps is to be done after this one."""
    return interval is not None and step % interval == 0


class Pace:
    """How long the parts of a run take, and whether another step fits; the same on every rank.

    Args:
        ranks: whose measures are compared.
    """

    def __init__(self, ranks: Collective) -> None:
        self._ranks = ranks
        self._began: float | None = None
        self._longest_step = 0.0

    def begin_step(self) -> None:
        """A step begins; the one before it ends here, its validation and checkpoint included."""
        now = time.monotonic()
        if self._began is not None:
            self._longest_step = max(self._longest_step, now - self._began)
        self._began = now

    def stop_is_due(self, another: bool) -> bool:
        """Whether to save and stop behind a step: asked for, or what follows is not likely to end in time.

        A collective.

        Args:
            another: whether another step follows.
        """
        step = 0.0
        if another and self._began is not None:
            step = max(self._longest_step, time.monotonic() - self._began)
        needed = MARGIN * (step + stopping.longest_save())
        asked = stopping.poll()
        found = self._ranks.maximum({"asked": float(asked), "late": float(stopping.seconds_left() < needed)})
        if found["asked"] and not asked:
            stopping.ask("another rank was asked")
            stopping.poll()
        if found["late"] and not found["asked"]:
            stopping.ask(f"{stopping.limit_name()} is nearly over")
            stopping.poll()
        return bool(found["asked"] or found["late"])

    def can_save(self) -> bool:
        """Whether there is time for a checkpoint. A collective."""
        return not self._ranks.maximum({"late": float(not stopping.can_save())})["late"]

    def stop_if_asked(self) -> None:
        """Stop here, where everything is saved. A collective.

        Raises:
            Stopped: a rank was asked; every rank raises it.
        """
        if self._ranks.maximum({"asked": float(stopping.poll())})["asked"]:
            raise stopping.Stopped(stopping.reason())

    def stopped(self, stop: stopping.Stopped, save: Callable[[], None]) -> None:
        """Save what was done before a step that was stopped. A collective.

        Args:
            stop: as it was raised.
            save: what saves, unless it is saved already.
        """
        if stop.moved:
            _logger.warning(
                "no time was left to finish the step and to save it: it is trained again from its rollouts"
            )
        elif not self.can_save():
            _logger.warning("no time was left for a checkpoint: the run goes on behind the last one")
        else:
            save()


def timed_save(save: Callable[[], None]) -> None:
    """Write a checkpoint, and note how long it takes."""
    progress.enter("saving")
    began = time.monotonic()
    save()
    stopping.note_save(time.monotonic() - began)
