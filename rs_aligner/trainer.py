"""The loop: sample, ask the judge, keep the best, train on them, write everything down, repeat.

It knows the policy and the judge by two small protocols only. Every rank runs it in step: replicas sample
their share of the prompts, their sources ask the judge, and then every rank holds the whole step and
comes to the same selection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from statistics import fmean
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from rs_aligner.config import SamplingParams, TrainRSConfig, num_steps
from rs_aligner.data import PromptSampler
from rs_aligner.failures import judge_failure
from rs_aligner.loop import VALIDATION, Policy, is_due, out_of_time, resume, training_metrics
from rs_aligner.metrics import step_metrics
from rs_aligner.proof import proof_metrics
from rs_aligner.reward.protocol import Judge, JudgeFailed
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure, TrainingRow
from rs_aligner.run import Run
from rs_aligner.selection import Selection, nothing_kept, select

_logger = logging.getLogger("rs_aligner")


class RSTrainer:
    """Rejection sampling fine-tuning.

    Args:
        config: a checked config.
        policy: what is trained.
        judge: what scores; None on ranks that do not speak for their replica.
        prompts: to train on.
        validation: held-out prompts, never trained on.
        run: the run's folder.
    """

    def __init__(
        self,
        config: TrainRSConfig,
        policy: Policy,
        judge: Judge | None,
        prompts: Sequence[Prompt],
        validation: Sequence[Prompt],
        run: Run,
    ) -> None:
        self.config, self.policy, self.judge, self.run = config, policy, judge, run
        self.rs, self.loop = config.model.rs, config.trainer.rs
        self.prompts = prompts
        self.validation = validation[: self.rs.num_val_samples]
        self.sampler = PromptSampler(len(prompts), self.rs.num_rollout_samples, seed=config.model.seed)
        self.num_steps = num_steps(config, len(prompts))

    def fit(self) -> None:
        """Train to the end, or until the time is up; then save and export.

        Raises:
            JudgeFailed: the judge scored too little of a step; every rank raises it. Nothing of the step is
                trained, what was done before is saved, and the run continues there when it is started again.
        """
        first = self._resume()
        if first == 1 and (validation := self._validate(0)):
            self.run.record({"step": 0, **validation})
        for step in range(first, self.num_steps + 1):
            self.run.begin_step()
            began = time.monotonic()
            before = self._counters(step - 1)
            prompts = self._next_prompts()
            groups, waited, failure = self._rollouts(
                prompts, self.rs.num_rollouts_per_prompt, self.rs.sampling_params, step, f"step {step}"
            )
            if failure is not None:
                self._stop_before(step, before, groups, failure)
            generated = time.monotonic()
            selection = self._select(groups)
            stats = self.policy.train(_training_rows(groups, selection))
            self.policy.version = step
            trained = time.monotonic()
            times = self.policy.maximum(
                {
                    "time/generate": generated - began - waited,
                    "time/score_wait": waited,
                    "time/train": trained - generated,
                    "time/step": trained - began,
                }
            )
            if self.ledger is not None:
                self.ledger.append(step, groups, selection)
            metrics = {
                "step": step,
                "policy_version": self.policy.version,
                "consumed_prompts": self.sampler.consumed_prompts,
                **step_metrics(groups, selection),
                **proof_metrics(groups, selection, passed_above=self.rs.passed_above),
                **training_metrics(stats),
                **times,
            }
            self._say(metrics)
            last = step == self.num_steps or out_of_time(self.run, self.policy)
            unscored: JudgeFailed | None = None
            if is_due(step, self.loop.val_check_interval) or last:
                try:
                    metrics |= self._validate(step)
                except JudgeFailed as error:
                    unscored = error
            self.run.record(metrics)
            if is_due(step, self.loop.save_interval or self.loop.val_check_interval) or last or unscored:
                self._save(self._counters(step))
            if unscored is not None:
                raise unscored
            if last:
                break
        self.policy.export(self.run.final)

    def _resume(self) -> int:
        """Continue from the newest checkpoint, if there is one; returns the step to begin with."""
        done = self._saved = resume(self.run, self.policy, self.sampler)["step"]
        if done >= self.num_steps:
            _logger.info(
                "nothing left to do: the run has %d steps; see trainer.rs.max_epochs", self.num_steps
            )
        self.ledger = self.run.open(done)
        return max(done, 0) + 1

    def _counters(self, step: int) -> dict[str, Any]:
        """Where the run is behind a step, as a checkpoint has it."""
        return {"step": step, "sampler": self.sampler.state_dict()}

    def _save(self, counters: dict[str, Any]) -> None:
        self._saved = counters["step"]
        self.run.save(self.policy, self._saved, counters)

    def _stop_before(self, step: int, before: dict[str, Any], groups: list[Group], failure: str) -> NoReturn:
        """End a run whose judge failed in this step: write it down, untrained, and save what was done."""
        if self.ledger is not None:
            self.ledger.append(step, groups, nothing_kept(groups, "the step was not trained"))
        if step - 1 > max(self._saved, 0):
            self._save(before)
        raise JudgeFailed(f"{failure}; nothing of it was trained, start the run again to go on")

    def _next_prompts(self) -> list[Prompt]:
        return [replace(self.prompts[draw.index], position=draw.position) for draw in next(self.sampler)]

    def _rollouts(
        self, prompts: Sequence[Prompt], num_rollouts: int, sampling: SamplingParams, step: int, what: str
    ) -> tuple[list[Group], float, str | None]:
        """Sample and score; the same on every rank.

        Rollouts go to the judge as they end, while others are still being generated.

        Returns:
            The whole step's groups, the seconds spent waiting for scores, and why the judge failed too much
            to go on, None if it did not.
        """
        mine: list[tuple[Rollout, Score | ScoreFailure | Future[Score | ScoreFailure]]] = []
        problem: str | None = None
        stream = self.policy.generate(
            prompts,
            num_rollouts,
            sampling,
            self.rs.length_params,
            step=step,
            wave_size=self.rs.rollout_micro_batch_size,
        )
        hidden = None if self.run.is_writer else True  # None: shown on a terminal only
        for rollout in tqdm(
            stream, what, len(prompts) * num_rollouts, leave=False, disable=hidden, unit=" rollouts"
        ):
            if self.judge is None:
                continue
            if problem is not None:  # the others wait for this rank, so it samples to the end
                mine.append((rollout, ScoreFailure(problem)))
                continue
            try:
                mine.append((rollout, self.judge.submit(prompts[rollout.group], rollout)))
            except (ValueError, OSError, RuntimeError) as error:  # no judge, or not the one that was meant
                problem = str(error)
                mine.append((rollout, ScoreFailure(problem)))
        waiting = time.monotonic()
        if self.judge is not None:
            self.judge.flush()
        scored = [(rollout, s.result() if isinstance(s, Future) else s) for rollout, s in mine]
        waited = time.monotonic() - waiting
        gathered = self.policy.gather((scored, problem))
        everyone = [pair for replica, _ in gathered for pair in replica]
        everyone.sort(key=lambda pair: (pair[0].group, pair[0].index))
        groups = [Group(prompt, [], []) for prompt in prompts]
        for rollout, result in everyone:
            groups[rollout.group].rollouts.append(rollout)
            groups[rollout.group].scores.append(result)
        failure = next((f"{what}: {text}" for _, text in gathered if text is not None), None)
        return groups, waited, failure or judge_failure(groups, self.config.remote_rm, what)

    def _select(self, groups: Sequence[Group]) -> Selection:
        scores = [group.scores for group in groups]
        rewards = torch.tensor(
            [[s.reward if isinstance(s, Score) else 0.0 for s in row] for row in scores], dtype=torch.float64
        )
        scored = torch.tensor([[isinstance(s, Score) for s in row] for row in scores])
        return select(rewards, scored, self.rs.top_n_rollouts, self.rs.min_reward)

    def _validate(self, step: int) -> dict[str, float]:
        """Sample answers to the held-out prompts; nothing of them is trained on."""
        if not self.validation or self.loop.val_check_interval is None:
            return {}
        groups, _, failure = self._rollouts(
            self.validation,
            self.rs.num_val_rollouts_per_prompt,
            self.rs.val_sampling_params,
            VALIDATION,
            "validation",
        )
        if failure is not None:
            raise JudgeFailed(failure)
        rewards = [score.reward for group in groups for score in group.scores if isinstance(score, Score)]
        lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
        metrics = {"validation/reward": fmean(rewards), "validation/response_length/mean": fmean(lengths)}
        when = f"after step {step}" if step else "before the first step"
        _logger.info("validation %s: reward %.4f over %d rollouts", when, fmean(rewards), len(rewards))
        return metrics

    def _say(self, metrics: dict[str, Any]) -> None:
        kept = f"{metrics['reward/kept_mean']:.4f}" if "reward/kept_mean" in metrics else "none"
        loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else "nothing kept, no optimizer step"
        _logger.info(
            "step %d/%d  reward %.4f, kept %s (%d of %d)  %s  %.1f s (generate %.1f, wait %.1f, train %.1f)",
            *(metrics["step"], self.num_steps, metrics["reward/mean"], kept),
            *(metrics["rollouts/kept"], metrics["rollouts/total"], loss),
            *(metrics[f"time/{part}"] for part in ("step", "generate", "score_wait", "train")),
        )


def _training_rows(groups: Sequence[Group], selection: Selection) -> list[TrainingRow]:
    """The kept rollouts in (prompt, rollout) order."""
    return [
        TrainingRow(group.prompt.token_ids, rollout.token_ids)
        for group, kept in zip(groups, selection.keep.tolist(), strict=True)
        for rollout, keep in zip(group.rollouts, kept, strict=True)
        if keep
    ]
