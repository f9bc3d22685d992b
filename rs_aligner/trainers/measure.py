"""The figures of a step, in numbers and as a line: what they are taken over, so that an estimate is one.

Counts are of all that a step chose from. What estimates something of the policy, or of selection against
chance, is taken over the rollouts that were sampled by design: a bank holds winners, and where
`model.rs.until` samples on, it does so for prompts that fail; both would bias a mean and pass@k. So `until`
leaves its first round, a bank what is new. What cannot be said of a part of the choice is absent.

Left out on purpose: estimators of sequential sampling, such as (a - 1)/(n - 1) of inverse sampling. They are
unbiased without a budget, without a bound for a prompt and in rounds of one only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from rs_aligner.batching import is_few
from rs_aligner.data import DataOrder
from rs_aligner.proof.chance import proof_metrics
from rs_aligner.proof.tail import Tails, tail_metrics
from rs_aligner.proof.watched import watched_metrics
from rs_aligner.record.metrics import step_metrics
from rs_aligner.rollout import ScoreFailure
from rs_aligner.selection import Selection
from rs_aligner.trainers.pool import Candidates
from rs_aligner.trainers.protocols import Stats

_logger = logging.getLogger("rs_aligner")


def training_metrics(stats: Sequence[Stats]) -> dict[str, float]:
    """Means over a step's optimizer steps, and the last learning rate; nothing if there were none.

    A further figure, such as `kl`, is the mean over the optimizer steps that have it. Those that were not
    applied are counted, and take no part in the means.
    """
    number = sum(bool(one.skipped) for one in stats)
    counted: dict[str, float] = {"optimizer_steps/skipped": number} if number else {}
    stats = [one for one in stats if not one.skipped]
    if not stats:
        return counted
    figures: dict[str, list[float]] = {}
    for one in stats:
        for name, value in one.figures.items():
            figures.setdefault(name, []).append(value)
    return {
        "loss": fmean(one.loss for one in stats),
        "grad_norm": fmean(one.grad_norm for one in stats),
        "lr": stats[-1].learning_rate,
        **{name: fmean(values) for name, values in figures.items()},
        **counted,
    }


def drawn_metrics(order: DataOrder) -> dict[str, float]:
    """How many prompts or rows were drawn so far, and each file's share of them where files have weights."""
    shares = {f"data/share/{name}": share for name, share in order.shares_drawn().items()}
    return {"consumed_prompts": order.consumed_prompts, **shares}


def measure(
    candidates: Candidates, selection: Selection, *, passed_above: float = 0.0, judges: Sequence[str] = ()
) -> dict[str, float]:
    """What follows from a step's rollouts, scores and selection; docs/metrics.md has each key.

    Args:
        candidates: what the step chose from.
        selection: of it.
        passed_above: `model.rs.passed_above`.
        judges: components of the scores that judge the same thing.
    """
    everyone, places = candidates.groups, candidates.by_design()
    groups = [group.only(part) for group, part in zip(everyone, places, strict=True)]
    part = selection.only(places)
    is_all = sum(map(len, places)) == sum(len(group.rollouts) for group in everyone)
    metrics = step_metrics(everyone, selection, sampled=groups)
    metrics |= proof_metrics(groups, part, passed_above=passed_above, is_all=is_all)
    metrics |= tail_metrics(groups, part, judges)
    if any(group.watched for group in everyone):
        metrics |= watched_metrics(groups, part, [group.watched_scores() for group in groups])
        answers = [answer for group in everyone for answer in group.watched_scores()]
        metrics["watched/failed"] = sum(isinstance(answer, ScoreFailure) for answer in answers)
    return {**metrics, **candidates.counted}


class Teller:
    """Tells of each step in the log.

    Args:
        num_steps: of the run.
        batch_size: `model.global_batch_size`.
        earlier: the figures of all steps before, which an earlier start may have written; asked once.
    """

    def __init__(
        self,
        num_steps: int,
        batch_size: int,
        earlier: Callable[[], Sequence[Mapping[str, float]]] = lambda: (),
    ) -> None:
        self._num_steps, self._batch_size, self._said_few = num_steps, batch_size, False
        self._earlier = earlier
        self._tails: Tails | None = None

    def tell(self, metrics: Mapping[str, float]) -> None:
        """A line on a step; a warning where a step keeps few, once, and where judges part in the tail."""
        for warning in self._look_at_tails(metrics):
            _logger.warning("%s", warning)
        few, most = int(metrics["rollouts/kept"]), self._batch_size
        if is_few(few, most) and not self._said_few:
            self._said_few = True
            _logger.warning(
                "step %d kept %d rollouts, fewer than a tenth of model.global_batch_size = %d: an optimizer "
                "step on few rows goes as far as one on many; lower it, or let a step keep more (said once)",
                *(metrics["step"], few, most),
            )
        mean, kept = (
            f"{metrics[key]:.4f}" if key in metrics else "none" for key in ("reward/mean", "reward/kept_mean")
        )
        why = "loss not finite" if "optimizer_steps/skipped" in metrics else "nothing kept"
        loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else f"{why}, no optimizer step"
        weights = f"weights {metrics['time/weights']:.1f}, " if metrics["time/weights"] else ""
        _logger.info(
            "step %d/%d  reward %s, kept %s (%d of %d)  %s  %.1f s (%sgenerate %.1f, wait %.1f, train %.1f)",
            *(metrics["step"], self._num_steps, mean, kept),
            *(metrics["rollouts/kept"], metrics["rollouts/total"], loss, metrics["time/step"], weights),
            *(metrics[f"time/{part}"] for part in ("generate", "score_wait", "train")),
        )

    def _look_at_tails(self, metrics: Mapping[str, float]) -> list[str]:
        if self._tails is None:
            self._tails = Tails()
            for row in self._earlier():
                if row["step"] < metrics["step"]:
                    self._tails.observe(row)
        return self._tails.observe(metrics)
