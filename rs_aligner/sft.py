"""Supervised training: give rejection sampling a policy that succeeds now and then.

A step is one optimizer step on `global_batch_size` rows. Now and then the policy answers held-out prompts,
a judge in this process scores the answers, and the training stops as soon as they are good enough: how many
steps that takes differs from seed to seed. Like the trainer of rejection sampling it knows the policy by a
protocol only, and every rank runs it in step. Left out on purpose: packing, and a held-out loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from rs_aligner.config import TrainSFTConfig
from rs_aligner.data import PromptSampler
from rs_aligner.loop import VALIDATION, Policy, is_due, out_of_time, resume, training_metrics
from rs_aligner.rollout import Prompt, TrainingRow
from rs_aligner.run import Run

_logger = logging.getLogger("rs_aligner")
SAY_SECONDS = 5.0  # steps are short: not each of them is worth a line
REWARD = "validation/reward"

Judge = Callable[[list[str], list[str], list[dict[str, Any]]], list[float]]
"""Scores texts: `f(prompts, responses, metadata)`, one number a row."""


def num_sft_steps(config: TrainSFTConfig, num_rows: int) -> int:
    """Steps of the whole run: all epochs, or `trainer.sft.max_steps` if that is less."""
    steps = config.loop.max_epochs * -(-num_rows // config.model.global_batch_size)
    return steps if config.loop.max_steps == -1 else min(steps, config.loop.max_steps)


class SFTTrainer:
    """Supervised training until the held-out score suffices, or to the end.

    Args:
        config: a checked config.
        policy: what is trained.
        judge: scores held-out answers; None where the config has none, and on ranks that do not speak for
            their replica.
        rows: to train on.
        validation: held-out prompts, never trained on.
        run: the run's folder.
    """

    def __init__(
        self,
        config: TrainSFTConfig,
        policy: Policy,
        judge: Judge | None,
        rows: Sequence[TrainingRow],
        validation: Sequence[Prompt],
        run: Run,
    ) -> None:
        self.config, self.policy, self.judge, self.run = config, policy, judge, run
        self.sft, self.loop = config.model.sft, config.loop
        self.rows = rows
        self.validation = validation[: self.sft.num_val_samples]
        self.sampler = PromptSampler(len(rows), config.model.global_batch_size, seed=config.model.seed)
        self.num_steps = num_sft_steps(config, len(rows))

    def fit(self) -> None:
        """Train until it is good enough, the epochs are over or the time is up; then save and export.

        Raises:
            ValueError: the judge gave no held-out answer a finite score.
        """
        counters = resume(self.run, self.policy, self.sampler)
        self.run.open(counters["step"])
        done, reward = max(counters["step"], 0), counters.get("reward")
        if counters["step"] < 0:
            found = self._validate(0)
            reward = found.get(REWARD)
            if found:
                self.run.record({"step": 0, **found})
        said = -math.inf
        good_enough = self._is_good_enough(reward)
        if good_enough or done >= self.num_steps:
            _logger.info("nothing to train: step %d of %d, held-out reward %s", done, self.num_steps, reward)
        while not good_enough and done < self.num_steps:
            self.run.begin_step()
            began = time.monotonic()
            done += 1
            stats = self.policy.train([self.rows[draw.index] for draw in next(self.sampler)])
            self.policy.version = done
            metrics = {
                "step": done,
                "policy_version": done,
                "consumed_prompts": self.sampler.consumed_prompts,
                **training_metrics(stats),
                **self.policy.maximum({"time/step": time.monotonic() - began}),
            }
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                _logger.info("step %d/%d  loss %.4f", done, self.num_steps, metrics["loss"])
            last = done == self.num_steps or out_of_time(self.run, self.policy)
            if is_due(done, self.loop.val_check_interval) or last:
                found = self._validate(done)
                metrics |= found
                reward = found.get(REWARD)
                good_enough = self._is_good_enough(reward)
            self.run.record(metrics)
            interval = self.loop.save_interval or self.loop.val_check_interval
            if is_due(done, interval) or last or good_enough:
                counters = {"step": done, "sampler": self.sampler.state_dict(), "reward": reward}
                self.run.save(self.policy, done, counters)
            if last:
                break
        self._say_how_it_ended(good_enough, done)
        self.policy.export(self.run.final)

    def _is_good_enough(self, reward: float | None) -> bool:
        stop = self.loop.stop_at_validation
        return stop is not None and reward is not None and reward >= stop

    def _say_how_it_ended(self, good_enough: bool, done: int) -> None:
        stop = self.loop.stop_at_validation
        if good_enough:
            _logger.info("good enough after step %d (trainer.sft.stop_at_validation=%s)", done, stop)
        elif stop is not None:
            _logger.warning("ended below trainer.sft.stop_at_validation=%s, after step %d", stop, done)

    def _validate(self, step: int) -> dict[str, float]:
        """Answer the held-out prompts, one answer each; nothing of them is trained on.

        Each replica scores its own answers, so that a judge need not say the same on every rank.
        """
        if self.config.judge is None or self.loop.val_check_interval is None:
            return {}
        rollouts = list(
            self.policy.generate(
                self.validation,
                1,
                self.sft.sampling_params,
                self.sft.length_params,
                step=VALIDATION,
                wave_size=None,
            )
        )
        mine: list[float] = []
        if self.judge is not None and rollouts:
            prompts = [self.validation[rollout.group] for rollout in rollouts]
            texts = [rollout.text for rollout in rollouts]
            mine = self.judge([p.text for p in prompts], texts, [p.metadata for p in prompts])
        everyone = [reward for replica in self.policy.gather(mine) for reward in replica]
        rewards = [reward for reward in everyone if math.isfinite(reward)]
        if not rewards:
            raise ValueError(f"validation: the judge gave none of {len(everyone)} answers a finite score")
        if len(rewards) < len(everyone):
            missing = len(everyone) - len(rewards)
            _logger.warning("validation: %d of %d answers have no score", missing, len(everyone))
        when = f"after step {step}" if step else "before the first step"
        _logger.info("validation %s: reward %.4f over %d answers", when, fmean(rewards), len(rewards))
        return {REWARD: fmean(rewards)}
