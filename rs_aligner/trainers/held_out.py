"""Held-out prompts: how good the policy is, which step was the best, and when nothing is gained any more.

Answers to validation prompts are sampled and scored, and nothing of them is trained on. The figures found so
far are part of the checkpoint, so that a run that continues stops where one that was not interrupted would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rs_aligner.config import TrainRSConfig
from rs_aligner.proof.watched import Parting, Validation, mean_and_error
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Group, Prompt, Score, ScoreFailure
from rs_aligner.trainers.collect import Collector
from rs_aligner.trainers.journal import Journal
from rs_aligner.trainers.round import VALIDATION

_logger = logging.getLogger("rs_aligner")
MetricsOf = Callable[[Sequence[Group]], Mapping[str, float]]
"""Figures of held-out answers, by their names."""


class HeldOut:
    """The validation prompts of a run, and what was found with them.

    Args:
        config: a checked config.
        collector: samples and scores.
        prompts: the validation prompts.
        journal: where the answers are written down.
        metrics_of: further figures of the answers, which are recorded as `validation/metrics/<name>`.
    """

    def __init__(
        self,
        config: TrainRSConfig,
        collector: Collector,
        prompts: Sequence[Prompt],
        journal: Journal,
        metrics_of: MetricsOf | None = None,
    ) -> None:
        self._metrics_of = metrics_of
        self.rs, self.collector, self.journal = config.model.rs, collector, journal
        self.prompts = tuple(prompts[: self.rs.num_val_samples])
        self.patience = config.trainer.rs.patience
        self.monitor = config.exp_manager.checkpoint_callback_params
        self._found: dict[int, float] = {}  # the monitored figure, by step
        self._parting = Parting()

    def measure(self, step: int) -> dict[str, float]:
        """Sample answers and have them scored, those that earlier starts did not; a collective.

        Raises:
            JudgeFailed: too few were scored.
        """
        found = self.collector.collect(
            self.prompts,
            self.rs.num_val_rollouts_per_prompt,
            self.rs.val_sampling_params,
            step=VALIDATION,
            what="validation",
            open_rollouts=self.journal.open_held_out(step),
        )
        if found.failure is not None:
            raise JudgeFailed(found.failure)
        self.journal.measured(step, found.groups, anew=found.num_sampled > 0)
        lengths = [len(rollout.token_ids) for group in found.groups for rollout in group.rollouts]
        metrics = {
            **held_out_figures("validation/reward", [group.scores for group in found.groups]),
            **held_out_figures("validation/watched", [group.watched for group in found.groups]),
            "validation/response_length/mean": fmean(lengths),
            **{f"validation/{name}": number for name, number in found.counted.items()},
        }
        if self._metrics_of is not None:
            found_by_user = self._metrics_of(found.groups)
            metrics |= {f"validation/metrics/{name}": value for name, value in found_by_user.items()}
        self._tell(step, metrics, found.groups)
        self._compare(step, metrics)
        if self.monitor.figure in metrics:
            self._found[step] = metrics[self.monitor.figure]
        return metrics

    @property
    def best_step(self) -> int | None:
        """The step with the best figure, the latest of equals; None if there is no figure yet."""
        return max(self._found, key=lambda step: (self._goodness(step), step), default=None)

    @property
    def is_over(self) -> bool:
        """Whether as many checks as `patience` have passed without a better figure."""
        if self.patience is None or not self._found:
            return False
        best = max(self._found, key=self._goodness)  # the first of equals: a figure as good is no better
        return sum(step > best for step in self._found) >= self.patience

    def _goodness(self, step: int) -> float:
        return self._found[step] if self.monitor.mode == "max" else -self._found[step]

    def state_dict(self) -> dict[str, Any]:
        """What was found, as plain JSON values."""
        found = [[step, figure] for step, figure in self._found.items()]
        return {"found": found, "parting": self._parting.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was found."""
        self._found = {int(step): float(figure) for step, figure in state["found"]}
        self._parting.load_state_dict(state["parting"])

    def _compare(self, step: int, metrics: dict[str, float]) -> None:
        """Warn where the judge and the watched one part ways."""
        keys = [f"validation/{name}" for name in ("reward", "reward_error", "watched", "watched_error")]
        if all(key in metrics for key in keys):
            warning = self._parting.observe(Validation(step, *(metrics[key] for key in keys)))
            if warning is not None and self.collector.is_first:
                _logger.warning("%s", warning)

    def _tell(self, step: int, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        when = f"after step {step}" if step else "before the first step"
        number = sum(isinstance(score, Score) for group in groups for score in group.scores)
        seen = f", watched {metrics['validation/watched']:.4f}" if "validation/watched" in metrics else ""
        reward = metrics["validation/reward"]
        _logger.info("validation %s: reward %.4f%s over %d rollouts", when, reward, seen, number)


def held_out_figures(key: str, scores: Sequence[Sequence[Score | ScoreFailure]]) -> dict[str, float]:
    """The mean of all scores, and the standard error over prompts; nothing where there are none."""
    rewards = [score.reward for row in scores for score in row if isinstance(score, Score)]
    if not rewards:
        return {}
    with_error = mean_and_error(scores)
    return {key: fmean(rewards)} | ({} if with_error is None else {f"{key}_error": with_error[1]})
