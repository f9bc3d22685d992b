"""A second judge that is only watched: what it says of a step, and when it parts from the optimised one.

A policy learns whatever its judge rewards, blind spots included. The sign is that the judge's score goes on
rising while the score of another judge, which nothing is selected by, falls. `watched_metrics` measures the
second judge in a step, `Parting` compares the two over a run's validations.

Left out on purpose: asking the second judge (the trainer), and doing something about it (the user;
docs/metrics.md says what helps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from rs_aligner.midranks import midranks
from rs_aligner.proof.chance import kept_rows
from rs_aligner.rollout import Group, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection

Result = Score | ScoreFailure
NUM_ERRORS = 2.0  # standard errors of a difference that count as significant
ALONE_ERRORS = 3.0  # of a fall that no significant rise goes with
LEAST_FALL = 0.01  # of what the watched score had gained


def watched_metrics(
    groups: Sequence[Group], selection: Selection, watched: Sequence[Sequence[Result]]
) -> dict[str, float]:
    """What the second judge says of a step.

    Args:
        groups: all groups of the step.
        selection: a row per group.
        watched: the second judge's result for each rollout, in the order of the groups.

    Returns:
        `watched/mean` and `watched/kept_mean` (over all it scored, and over the kept among them),
        `watched/kept_minus_mean`, `watched/failed` (a count) and `watched/rank_correlation`: Spearman's
        between the two judges' scores within a group, mean over the groups in which both tell at least two
        rollouts apart. What is undefined is absent.

    Raises:
        ValueError: the results do not fit the groups.
    """
    sizes, wanted = [len(row) for row in watched], [len(group.rollouts) for group in groups]
    if sizes != wanted:
        raise ValueError(f"the watched judge's results are {sizes} a group, the rollouts {wanted}")
    everything: list[float] = []
    kept: list[float] = []
    correlations: list[float] = []
    num_failed = 0
    for group, row, results in zip(groups, kept_rows(groups, selection), watched, strict=True):
        both = []
        for score, is_kept, result in zip(group.scores, row, results, strict=True):
            if not isinstance(result, Score):
                num_failed += 1
                continue
            everything.append(result.reward)
            if is_kept:
                kept.append(result.reward)
            if isinstance(score, Score):
                both.append((score.reward, result.reward))
        correlation = rank_correlation([one for one, _ in both], [other for _, other in both])
        if correlation is not None:
            correlations.append(correlation)
    metrics: dict[str, float] = {"watched/failed": num_failed}
    if everything:
        metrics["watched/mean"] = fmean(everything)
    if kept:
        metrics["watched/kept_mean"] = fmean(kept)
        metrics["watched/kept_minus_mean"] = fmean(kept) - fmean(everything)
    if correlations:
        metrics["watched/rank_correlation"] = fmean(correlations)
    return metrics


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, equal values sharing the mean of theirs.

    Returns:
        From -1 to 1; None where one of the two does not tell the items apart.
    """
    if len(first) < 2 or min(first) == max(first) or min(second) == max(second):
        return None
    x, y = np.array(midranks(first)), np.array(midranks(second))
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def mean_and_error(scores: Sequence[Sequence[Result]]) -> tuple[float, float] | None:
    """The mean score over prompts, and its standard error.

    Rollouts of one prompt are alike, so the error is that of the mean of the prompts' means.

    Args:
        scores: of the rollouts of each prompt.

    Returns:
        The two; None with fewer than two prompts that have a score.
    """
    means = [fmean(s.reward for s in row if isinstance(s, Score)) for row in scores if _has_score(row)]
    return (fmean(means), stdev(means) / math.sqrt(len(means))) if len(means) > 1 else None


def _has_score(row: Sequence[Result]) -> bool:
    return any(isinstance(score, Score) for score in row)


@dataclass(frozen=True, slots=True)
class Validation:
    """What the two judges said at a validation: means over the held-out prompts, with standard errors."""

    step: int
    reward: float
    reward_error: float
    watched: float
    watched_error: float


class Parting:
    """Notices that the watched judge's held-out score falls while the optimised one's rises, or stands still.

    The validation at which the watched score was highest is where the two agreed best. They have parted when,
    since then, the optimised score has risen by more than two standard errors of that difference, and the
    watched one has fallen by more than two of its own: `sqrt(e_then^2 + e_now^2)`, as for independent
    samples. What holds the policy back, such as a KL term, also holds that rise back (it hid the parting for
    three validations in `benchmarks/flawed_judge.py`); so a fall of more than three suffices where the
    optimised score has not fallen. A fall by less than a hundredth of what the watched score had gained is
    none: near the most that a judge gives, errors are smaller than anything that matters.
    Validations share prompts and random numbers, so the true errors are smaller and the warning comes late
    rather than early. Taking the highest of many validations makes it a little earlier. Simulated runs of 20
    validations in which nothing changes got it in 12 % of cases with independent samples, and in fewer than
    0.1 % with errors 0.7 times as large.
    """

    def __init__(self) -> None:
        self.has_parted = False
        self._best: Validation | None = None
        self._first: float | None = None

    def observe(self, now: Validation) -> str | None:
        """Take in a validation.

        Returns:
            A warning when the two part; None otherwise, and as long as they stay apart.

        Raises:
            ValueError: a figure is not finite, or an error is below 0.
        """
        figures = (now.reward, now.reward_error, now.watched, now.watched_error)
        if not all(map(math.isfinite, figures)) or min(now.reward_error, now.watched_error) < 0:
            raise ValueError(f"a validation needs finite means and errors of at least 0, not {now}")
        best, had_parted = self._best, self.has_parted
        first = self._first = now.watched if self._first is None else self._first
        if best is None or now.watched >= best.watched:
            self._best, self.has_parted = now, False
            return None
        rise, fall = now.reward - best.reward, best.watched - now.watched
        rises = rise > NUM_ERRORS * math.hypot(best.reward_error, now.reward_error)
        enough = NUM_ERRORS if rises else ALONE_ERRORS
        fall_error = math.hypot(best.watched_error, now.watched_error)
        matters = fall >= LEAST_FALL * (best.watched - first)
        self.has_parted = rise >= 0 and matters and fall > enough * fall_error
        if not self.has_parted or had_parted:
            return None
        return (
            f"the judges part: since step {best.step} the optimised judge's held-out score rose from "
            f"{best.reward:.4f} to {now.reward:.4f}, the watched judge's fell from {best.watched:.4f} to "
            f"{now.watched:.4f}, by more than {enough:g} standard errors; what is learnt since may be the "
            "judge's blind spots (stop early, or add an anchor or a KL term: docs/metrics.md)"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, as plain JSON values."""
        best = None if self._best is None else asdict(self._best)
        return {"has_parted": self.has_parted, "best": best, "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the saved one was."""
        self.has_parted = state["has_parted"]
        self._best = None if state["best"] is None else Validation(**state["best"])
        self._first = state.get("first")  # a run that began before this was kept has none
