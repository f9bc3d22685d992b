"""Supervised training: give rejection sampling a policy that succeeds now and then.

A step is one optimizer step on `global_batch_size` rows. Now and then the policy answers held-out prompts,
a judge scores the answers, and the training stops as soon as they are good enough: how many
steps that takes differs from seed to seed. The loop is `epochs`; like the trainer of rejection sampling it
knows the policy by a protocol only. Left out on purpose: a held-out loss.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import fmean

from rs_aligner.config import TrainSFTConfig
from rs_aligner.data import Share
from rs_aligner.record.run import Run
from rs_aligner.record.sinks import Sampled
from rs_aligner.reward.protocol import Judge, JudgeFailed
from rs_aligner.rollout import Prompt, Score, ScoreFailure, TrainingRow
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.epochs import EpochTrainer
from rs_aligner.trainers.failures import count_reasons
from rs_aligner.trainers.held_out import held_out_figures
from rs_aligner.trainers.protocols import Policy
from rs_aligner.trainers.round import VALIDATION, Judges, sample_and_score

_logger = logging.getLogger("rs_aligner")
REWARD = "validation/reward"


class SFTTrainer(EpochTrainer[TrainingRow]):
    """Supervised training until the held-out score suffices, or to the end.

    Args:
        config: a checked config.
        policy: what is trained.
        judge: scores held-out answers; None where the config has none, and on ranks that do not speak for
            their replica.
        rows: to train on.
        validation: held-out prompts, never trained on.
        run: the run's folder.
        shares: of the files to train on, where they have weights.
    """

    section = "sft"

    def __init__(
        self,
        config: TrainSFTConfig,
        policy: Policy,
        judge: Judge | None,
        rows: Sequence[TrainingRow],
        validation: Sequence[Prompt],
        run: Run,
        shares: Sequence[Share] = (),
    ) -> None:
        super().__init__(config, policy, rows, run, shares)
        self.config, self.policy, self.judge, self.sft = config, policy, judge, config.model.sft
        self.validation = tuple(validation[: self.sft.num_val_samples])

    def is_good_enough(self, found: dict[str, float]) -> bool:
        """Whether the held-out score has reached `stop_at_validation`."""
        stop = self.config.loop.stop_at_validation
        return stop is not None and REWARD in found and found[REWARD] >= stop

    def say_how_it_ended(self, good_enough: bool, done: int) -> None:
        """Whether the score was reached, where there was one to reach."""
        stop = self.config.loop.stop_at_validation
        if good_enough:
            _logger.info("good enough after step %d (trainer.sft.stop_at_validation=%s)", done, stop)
        elif stop is not None:
            _logger.warning("ended below trainer.sft.stop_at_validation=%s, after step %d", stop, done)

    def validate(self, step: int) -> dict[str, float]:
        """Answer the held-out prompts, one answer each; nothing of them is trained on.

        Each replica has its own answers scored, so that a judge need not say the same on every rank.

        Returns:
            The mean over the answers that have a score, and its standard error over prompts.

        Raises:
            JudgeFailed: no held-out answer has one.
        """
        if self.config.judge is None or self.loop.val_check_interval is None:
            return {}
        request = SampleRequest(
            self.validation, 1, self.sft.sampling_params, self.sft.length_params, step=VALIDATION
        )
        found = sample_and_score(
            self.policy, request, Judges(self.judge), what="validation", is_first=self.run.is_first
        )
        if found.failure is not None:
            raise JudgeFailed(found.failure)
        self.run.sampled(step, Sampled(found.groups))
        scores = [score for group in found.groups for score in group.scores]
        rewards = [score.reward for score in scores if isinstance(score, Score)]
        reasons = count_reasons([score.reason for score in scores if isinstance(score, ScoreFailure)])
        if not rewards:
            raise JudgeFailed(f"validation: the judge scored none of {len(scores)} answers: {reasons}")
        if reasons:
            missing = len(scores) - len(rewards)
            _logger.warning("validation: %d of %d answers have no score: %s", missing, len(scores), reasons)
        when = f"after step {step}" if step else "before the first step"
        _logger.info("validation %s: reward %.4f over %d answers", when, fmean(rewards), len(rewards))
        return held_out_figures(REWARD, [group.scores for group in found.groups])
