"""The figures of a step: what they are taken over, so that an estimate is one.

Counts are of all that a step chose from. What estimates something of the policy, or of selection against
chance, is taken over the rollouts that were sampled by design: a bank holds winners, and where
`model.rs.until` samples on, it does so for prompts that fail; both would bias a mean and pass@k. So `until`
leaves its first round, a bank what is new. What cannot be said of a part of the choice is absent.

Left out on purpose: estimators of sequential sampling, such as (a - 1)/(n - 1) of inverse sampling. They are
unbiased without a budget, without a bound for a prompt and in rounds of one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rs_aligner.proof.chance import proof_metrics
from rs_aligner.proof.watched import watched_metrics
from rs_aligner.record.metrics import step_metrics
from rs_aligner.rollout import ScoreFailure
from rs_aligner.selection import Selection
from rs_aligner.trainers.pool import Candidates
from rs_aligner.trainers.protocols import Stats


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


def measure(candidates: Candidates, selection: Selection, *, passed_above: float = 0.0) -> dict[str, float]:
    """What follows from a step's rollouts, scores and selection; docs/metrics.md has each key.

    Args:
        candidates: what the step chose from.
        selection: of it.
        passed_above: `model.rs.passed_above`.
    """
    everyone, places = candidates.groups, candidates.by_design()
    groups = [group.only(part) for group, part in zip(everyone, places, strict=True)]
    part = selection.only(places)
    is_all = sum(map(len, places)) == sum(len(group.rollouts) for group in everyone)
    metrics = step_metrics(everyone, selection, sampled=groups)
    metrics |= proof_metrics(groups, part, passed_above=passed_above, is_all=is_all)
    if any(group.watched for group in everyone):
        metrics |= watched_metrics(groups, part, [group.watched_scores() for group in groups])
        answers = [answer for group in everyone for answer in group.watched_scores()]
        metrics["watched/failed"] = sum(isinstance(answer, ScoreFailure) for answer in answers)
    return metrics
