"""Sampling prompts and asking the judges, in as many rounds as it takes (`round` is one of them).

`Collector.collect` samples so many rollouts for each prompt; `collect_until` samples in rounds until each
prompt has enough accepted ones, within a budget that all prompts of the step share. Policy and judge are
known by protocols only. Left out on purpose: who is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rs_aligner.config import SamplingParams, TrainRSConfig, UntilConfig
from rs_aligner.reward.counters import added
from rs_aligner.rollout import Group, Prompt, Score
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.failures import judge_failure
from rs_aligner.trainers.journal import OpenRollouts
from rs_aligner.trainers.protocols import Samples
from rs_aligner.trainers.round import VALIDATION, Collected, Judges, sample_and_score


class Collector:
    """Samples and scores.

    Args:
        config: a checked config.
        policy: what samples.
        judges: who is asked.
        is_first: whether this is the first rank, which shows its progress.
    """

    def __init__(
        self,
        config: TrainRSConfig,
        policy: Samples,
        judges: Judges,
        *,
        is_first: bool = False,
    ) -> None:
        self.rs, self.remote_rm = config.model.rs, config.remote_rm
        self.policy, self.judges, self.is_first = policy, judges, is_first

    def collect(
        self,
        prompts: Sequence[Prompt],
        num_rollouts: int,
        sampling: SamplingParams,
        *,
        step: int,
        what: str,
        open_rollouts: OpenRollouts | None = None,
    ) -> Collected:
        """Sample so many rollouts for each prompt, and score them while others are still being generated.

        Args:
            prompts: in data order, the same on every rank.
            num_rollouts: for each.
            sampling: how.
            step: part of the seeds.
            what: it is called so in messages.
            open_rollouts: where they are written down as they are scored; None for nowhere.
        """
        request = self._request(prompts, num_rollouts, sampling, step)
        found = self._round(request, what, open_rollouts)
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
        open_rollouts: OpenRollouts | None = None,
    ) -> Collected:
        """Sample in rounds until each prompt has enough accepted rollouts, or the budget is spent.

        Rollouts of a later round have later indices, so their seeds are others. What is sampled depends on
        scores only, so a judge that scores the same again makes the same step again. All prompts get the
        first round, whatever is scored; only its rollouts are `by_design`.

        Args:
            until: when a prompt has enough, and the bounds of a prompt.
            num_rollouts: for each prompt, in the budget that all share.
            prompts, sampling, step, what, open_rollouts: as for `collect`.
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
            request = self._request(subset, size, sampling, step)
            request = replace(request, first_index=tried, numbers=asked)
            found = self._round(request, what, open_rollouts)
            for number, group in zip(asked, found.groups, strict=True):
                groups[number].rollouts += [
                    replace(rollout, group=number, by_design=tried == 0) for rollout in group.rollouts
                ]
                groups[number].scores += group.scores
                groups[number].watched += group.watched
                tokens_left -= num_tokens(group)
            tried, rollouts_left = tried + size, rollouts_left - size * len(asked)
            everything.waited += found.waited
            everything.weights_seconds += found.weights_seconds
            everything.num_sampled += found.num_sampled
            everything.counted = added((everything.counted, found.counted))
            everything.failure = found.failure or judge_failure(groups, self.remote_rm, what)
            if everything.failure is not None:
                break
        return everything

    def _request(
        self, prompts: Sequence[Prompt], num_rollouts: int, sampling: SamplingParams, step: int
    ) -> SampleRequest:
        """As the config says how to sample."""
        request = SampleRequest(prompts, num_rollouts, sampling, self.rs.length_params, step=step)
        now = step == VALIDATION  # figures of a step are of its policy
        return replace(request, wave_size=self.rs.rollout_micro_batch_size, now=now)

    def _round(self, request: SampleRequest, what: str, open_rollouts: OpenRollouts | None) -> Collected:
        return sample_and_score(
            self.policy,
            request,
            self.judges,
            what=what,
            is_first=self.is_first,
            open_rollouts=open_rollouts,
        )


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
