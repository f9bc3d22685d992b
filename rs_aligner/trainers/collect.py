"""Sampling prompts and asking the judges: rollouts leave as they end, and every rank gets all of them back.

`Collector.collect` samples so many rollouts for each prompt; `collect_until` samples in rounds until each
prompt has enough accepted ones, within a budget that all prompts of the step share. Policy and judge are
known by protocols only. Left out on purpose: who is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from tqdm import tqdm

from rs_aligner.config import SamplingParams, TrainRSConfig, UntilConfig
from rs_aligner.reward.protocol import Judge
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.failures import judge_failure
from rs_aligner.trainers.protocols import Policy

Answer = Score | ScoreFailure
Pending = Answer | Future[Answer]


@dataclass(slots=True)
class Collected:
    """Scored groups, the same on every rank.

    Attributes:
        groups: in the order of the prompts.
        waited: seconds that this rank waited for a judge: while it took rows in, and after the last rollout.
        failure: why the judge failed too much to go on; None if it did not.
        is_new: whether they were sampled now, not read.
    """

    groups: list[Group]
    waited: float = 0.0
    failure: str | None = None
    is_new: bool = True


class Collector:
    """Samples and scores.

    Args:
        config: a checked config.
        policy: what samples.
        judge: what scores; None on ranks that do not speak for their replica.
        watched: a second judge whose scores go into `Group.watched` and decide nothing; None for none, and
            on ranks without a judge.
        shows: whether this rank shows its progress.
    """

    def __init__(
        self,
        config: TrainRSConfig,
        policy: Policy,
        judge: Judge | None,
        watched: Judge | None = None,
        *,
        shows: bool = False,
    ) -> None:
        self.rs, self.remote_rm = config.model.rs, config.remote_rm
        self.policy, self.judge, self.watched, self.shows = policy, judge, watched, shows

    def collect(
        self,
        prompts: Sequence[Prompt],
        num_rollouts: int,
        sampling: SamplingParams,
        *,
        step: int,
        what: str,
    ) -> Collected:
        """Sample so many rollouts for each prompt, and score them while others are still being generated.

        Args:
            prompts: in data order, the same on every rank.
            num_rollouts: for each.
            sampling: how.
            step: part of the seeds.
            what: it is called so in messages.
        """
        found = self._round(prompts, num_rollouts, sampling, step, what, first_index=0)
        found.failure = found.failure or judge_failure(found.groups, self.remote_rm, what)
        return found

    def collect_until(
        self,
        prompts: Sequence[Prompt],
        until: UntilConfig,
        num_rollouts: int,
        sampling: SamplingParams,
        *,
        step: int,
        what: str,
    ) -> Collected:
        """Sample in rounds until each prompt has enough accepted rollouts, or the budget is spent.

        Rollouts of a later round have later indices, so their seeds are others. What is sampled depends on
        scores only, so a judge that scores the same again makes the same step again. All prompts get the
        first round, whatever is scored; only its rollouts are `by_design`.

        Args:
            until: when a prompt has enough, and the bounds of a prompt.
            num_rollouts: for each prompt, in the budget that all share.
            prompts, sampling, step, what: as for `collect`.
        """
        everything = Collected([Group(prompt, [], []) for prompt in prompts])
        groups, rollouts_left = everything.groups, num_rollouts * len(prompts)
        tokens_left = math.inf if until.tokens_per_prompt is None else until.tokens_per_prompt * len(prompts)
        tried = 0  # by every prompt that is still asked
        while rollouts_left > 0 and tokens_left > 0 and tried < until.max_rollouts:
            asked = [number for number, group in enumerate(groups) if _wants_more(group, until)]
            if not asked:
                break
            asked = asked[:rollouts_left]
            size = min(_round_size(until, tried), until.max_rollouts - tried, rollouts_left // len(asked))
            subset = [prompts[number] for number in asked]
            found = self._round(subset, size, sampling, step, what, first_index=tried)
            for number, group in zip(asked, found.groups, strict=True):
                groups[number].rollouts += [
                    replace(rollout, group=number, by_design=tried == 0) for rollout in group.rollouts
                ]
                groups[number].scores += group.scores
                groups[number].watched += group.watched
                tokens_left -= num_tokens(group)
            tried, rollouts_left = tried + size, rollouts_left - size * len(asked)
            everything.waited += found.waited
            everything.failure = found.failure or judge_failure(groups, self.remote_rm, what)
            if everything.failure is not None:
                break
        return everything

    def _round(
        self,
        prompts: Sequence[Prompt],
        num_rollouts: int,
        sampling: SamplingParams,
        step: int,
        what: str,
        first_index: int,
    ) -> Collected:
        """Every rank's share, gathered; the failure is that of a judge that could not be asked."""
        mine: list[tuple[Rollout, Pending, Pending | None]] = []
        problem: str | None = None
        waited = 0.0
        request = SampleRequest(
            prompts,
            num_rollouts,
            sampling,
            self.rs.length_params,
            step=step,
            wave_size=self.rs.rollout_micro_batch_size,
            first_index=first_index,
        )
        stream = self.policy.generate(request)
        hidden = None if self.shows else True  # None: shown on a terminal only
        total = len(prompts) * num_rollouts
        for rollout in tqdm(stream, what, total, leave=False, disable=hidden, unit=" rollouts"):
            if self.judge is None:
                continue
            prompt = prompts[rollout.group]
            handing_in = time.monotonic()
            score: Pending
            if problem is not None:  # the others wait for this rank, so it samples to the end
                score = ScoreFailure(problem)
            else:
                try:
                    score = self.judge.submit(prompt, rollout)
                except (ValueError, OSError, RuntimeError) as error:  # no judge, or not the one meant
                    problem = str(error)
                    score = ScoreFailure(problem)
            mine.append((rollout, score, self._watch(prompt, rollout)))
            waited += time.monotonic() - handing_in
        waiting = time.monotonic()
        for judge in (self.judge, self.watched):
            if judge is not None:
                judge.flush()
        scored = [(rollout, _result(score), _result(seen)) for rollout, score, seen in mine]
        waited += time.monotonic() - waiting
        gathered = self.policy.gather((scored, problem))
        everyone = [item for replica, _ in gathered for item in replica]
        everyone.sort(key=lambda item: (item[0].group, item[0].index))
        groups = [Group(prompt, [], []) for prompt in prompts]
        for rollout, result, seen in everyone:
            groups[rollout.group].rollouts.append(rollout)
            groups[rollout.group].scores.append(result)
            if seen is not None:
                groups[rollout.group].watched.append(seen)
        failure = next((f"{what}: {text}" for _, text in gathered if text is not None), None)
        return Collected(groups, waited, failure)

    def _watch(self, prompt: Prompt, rollout: Rollout) -> Pending | None:
        """Ask the watched judge, whose failures end nothing."""
        if self.watched is None:
            return None
        try:
            return self.watched.submit(prompt, rollout)
        except (ValueError, OSError, RuntimeError) as error:
            return ScoreFailure(str(error))


def num_tokens(group: Group) -> int:
    """Response tokens of a group's rollouts, ending tokens included."""
    return sum(len(rollout.token_ids) for rollout in group.rollouts)


def _round_size(until: UntilConfig, tried: int) -> int:
    """Rollouts that a prompt gets in a round, after so many that were not enough.

    Where the config does not say: first as many as are wanted, then a quarter of those tried. What is sampled
    in vain is what a round brings beyond the last accepted one that was missing. The first round has no such
    rollout. A prompt that was tried often passes seldom, so that a few more at once bring hardly more than
    what is missing, while the number of rounds grows only with the logarithm of the tries.
    """
    if until.rollouts_a_round is not None:
        return until.rollouts_a_round
    return max(1, tried // 4) if tried else until.accepted


def _wants_more(group: Group, until: UntilConfig) -> bool:
    if until.max_tokens is not None and num_tokens(group) >= until.max_tokens:
        return False
    accepted = sum(isinstance(s, Score) and s.reaches(until.at_least) for s in group.scores)
    return accepted < until.accepted


def _result(pending: Pending | None) -> Answer | None:
    return pending.result() if isinstance(pending, Future) else pending
