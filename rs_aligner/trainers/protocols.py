"""What the trainers' loops share: what they ask of a policy, how they continue, and when they stop early.

Left out on purpose: the loops themselves. Each trainer's `fit` reads top to bottom.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from rs_aligner.data import PromptSampler
from rs_aligner.record.run import Run
from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.sample_request import SampleRequest

_logger = logging.getLogger("rs_aligner")
VALIDATION = 0  # the step in the seeds of validation rollouts: every validation draws the same numbers


class Stats(Protocol):
    """What an optimizer step reports."""

    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def figures(self) -> Mapping[str, float]:
        """What else there is to report, by the name it has among the metrics; may be empty."""


class Policy(Protocol):
    """What is trained. All methods are collective: every rank calls them in the same order."""

    version: int

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends."""

    def train(self, rows: Sequence[TrainingRow]) -> Sequence[Stats]:
        """One pass over the rows."""

    def reference_log_probs(self, rows: Sequence[TrainingRow]) -> list[tuple[float, ...]]:
        """The log-probability of each response token under the starting policy, by row."""

    def restart(self) -> None:
        """Go back to the starting weights, with an optimizer as new."""

    def gather(self, item: Any) -> list[Any]:
        """The items of all replicas, on every rank."""

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        """Per key the largest value over all ranks."""

    def save(self, folder: Path, counters: dict[str, Any]) -> None: ...
    def load(self, folder: Path) -> dict[str, Any]: ...
    def export(self, folder: Path) -> None: ...


class Loadable(Protocol):
    """What can continue from a checkpoint."""

    def load(self, folder: Path) -> dict[str, Any]: ...


class Collective(Protocol):
    """What can compare its ranks."""

    def maximum(self, values: dict[str, float]) -> dict[str, float]: ...


def resume(run: Run, policy: Loadable, sampler: PromptSampler) -> dict[str, Any]:
    """Continue from the newest checkpoint, if there is one.

    Returns:
        The counters that the checkpoint was saved with; `{"step": -1}` for a new run.
    """
    if run.last_checkpoint is None:
        return {"step": -1}
    counters = policy.load(run.last_checkpoint)
    sampler.load_state_dict(counters["sampler"])
    _logger.info("continuing behind step %d of %s", counters["step"], run.last_checkpoint)
    return counters


def is_due(step: int, interval: int | None) -> bool:
    """Whether something done every so many steps is to be done after this one."""
    return interval is not None and step % interval == 0


def out_of_time(run: Run, policy: Collective) -> bool:
    """Whether `exp_manager.max_time_per_run` leaves no time for another step; the same on every rank."""
    out = policy.maximum({"out": float(not run.time_left_for_a_step())})["out"] > 0
    if out:
        _logger.info("exp_manager.max_time_per_run is nearly over: saving and stopping")
    return out


def training_metrics(stats: Sequence[Stats]) -> dict[str, float]:
    """Means over a step's optimizer steps, and the last learning rate; nothing if there were none.

    A further figure, such as `kl`, is the mean over the optimizer steps that have it.
    """
    if not stats:
        return {}
    figures: dict[str, list[float]] = {}
    for one in stats:
        for name, value in one.figures.items():
            figures.setdefault(name, []).append(value)
    return {
        "loss": fmean(one.loss for one in stats),
        "grad_norm": fmean(one.grad_norm for one in stats),
        "lr": stats[-1].learning_rate,
        **{name: fmean(values) for name, values in figures.items()},
    }
