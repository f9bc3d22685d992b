"""Where a loop stands: how it continues, what is due after a step, and when its time is up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rs_aligner.data import DataOrder
from rs_aligner.record.manifest import BrokenCheckpoint
from rs_aligner.record.run import Run
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


def out_of_time(run: Run, ranks: Collective) -> bool:
    """Whether `exp_manager.max_time_per_run` leaves no time for another step; the same on every rank."""
    out = ranks.maximum({"out": float(not run.time_left_for_a_step())})["out"] > 0
    if out:
        _logger.info("exp_manager.max_time_per_run is nearly over: saving and stopping")
    return out
