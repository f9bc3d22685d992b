"""Where a loop stands: how it continues, what is due after a step, and when its time is up."""

from __future__ import annotations

import logging
from typing import Any

from rs_aligner.data import DataOrder
from rs_aligner.record.run import Run
from rs_aligner.trainers.protocols import Collective, Trainee

_logger = logging.getLogger("rs_aligner")


def resume(run: Run, trainee: Trainee[Any], order: DataOrder) -> dict[str, Any]:
    """Continue from the newest checkpoint, if there is one.

    Returns:
        The counters that the checkpoint was saved with; `{"step": -1}` for a new run.
    """
    if run.last_checkpoint is None:
        return {"step": -1}
    counters = trainee.load(run.last_checkpoint)
    order.load_state_dict(counters["sampler"])
    _logger.info("continuing behind step %d of %s", counters["step"], run.last_checkpoint)
    return counters


def is_due(step: int, interval: int | None) -> bool:
    """Whether something done every so many steps is to be done after this one."""
    return interval is not None and step % interval == 0


def out_of_time(run: Run, ranks: Collective) -> bool:
    """Whether `exp_manager.max_time_per_run` leaves no time for another step; the same on every rank."""
    out = ranks.maximum({"out": float(not run.time_left_for_a_step())})["out"] > 0
    if out:
        _logger.info("exp_manager.max_time_per_run is nearly over: saving and stopping")
    return out
