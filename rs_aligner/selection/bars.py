"""Selectors that look at rewards only: the best, and bars of several kinds.

A bar is taken over what the selectors before it left, not over all that was scored: filters first, then the
percentile of what passed. Left out on purpose: draws at random (weights by reward belong to the objective;
a random control is computed from the same scores by the metrics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rs_aligner.rollout import Group
from rs_aligner.selection.base import GroupSelector, Places, Progress, Selector, reward, score
from rs_aligner.selection.topk import select_topk


class TopK(Selector):
    """The `k` best of each group; ties go to the lower index."""

    reason = "not in the top n"

    def __init__(self, k: int) -> None:
        self.k = k

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """The best of each group, those that there are where they are fewer than `k`."""
        widest = max((len(group.rollouts) for group in groups), default=0)
        if not widest:
            return [()] * len(groups)
        rewards = [[0.0] * widest for _ in groups]
        is_left = [[False] * widest for _ in groups]
        for row, (group, places) in enumerate(zip(groups, left, strict=True)):
            for place in places:
                rewards[row][place], is_left[row][place] = reward(group, place), True
        # As doubles: in single precision rewards that differ could be ties, and 1e39 infinite.
        rewards_PN, left_PN = torch.tensor(rewards, dtype=torch.float64), torch.tensor(is_left)
        keep_PN = select_topk(rewards_PN, min(self.k, widest), left_PN)
        return [keep_N.nonzero().flatten().tolist() for keep_N in keep_PN]


class Percentile(Selector):
    """What is at or above the p-th percentile of its group, p rising from `start` to `end`.

    The rising bar of trlX's RFT. There, p at the t-th of T passes is start + t/T (end - start), which never
    comes to `end`; here it is reached at the last pass. There, thresholds are also clipped to the range that
    those of all prompts span, less 0.001 at each end, so that the worst scores are not trained on. What this
    is for is `above_lowest`, without a width that would depend on the scale of the rewards.

    Args:
        start: p at the first pass, from 0 to 1.
        end: p at the last pass, also where it is the only one.
        over_run: whether p rises over the run's steps instead of over the passes through a pool.
        above_lowest: whether the lowest reward of the step is below every bar, so that a prompt at which all
            rollouts fail keeps none; where all rewards of the step are equal, all stay.
    """

    reason = "below the percentile"

    def __init__(
        self, start: float, end: float, *, over_run: bool = False, above_lowest: bool = False
    ) -> None:
        self.start, self.end, self.over_run, self.above_lowest = start, end, over_run, above_lowest

    def percentile(self, progress: Progress) -> float:
        """The bar's height p, from 0 to 1."""
        done, last = progress.improve_step, progress.num_improve_steps - 1
        if self.over_run:
            done, last = progress.step - 1, progress.num_steps - 1
        return self.end if done >= last else self.start + (self.end - self.start) * done / last

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """What reaches the quantile of what is left of its group."""
        p = self.percentile(progress)
        rewards = [
            [reward(group, place) for place in places] for group, places in zip(groups, left, strict=True)
        ]
        everything = [value for values in rewards for value in values]
        lowest = min(everything, default=math.inf)
        too_low = lowest if self.above_lowest and lowest < max(everything, default=lowest) else -math.inf
        stays: list[Places] = []
        for places, values in zip(left, rewards, strict=True):
            bar = quantile(values, p) if values else math.inf
            pairs = zip(places, values, strict=True)
            stays.append([place for place, value in pairs if value >= bar and value > too_low])
        return stays


class Threshold(GroupSelector):
    """What scores `at_least` so much."""

    def __init__(self, at_least: float, reason: str = "below the threshold") -> None:
        self.at_least, self.reason = at_least, reason

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What reaches the bar."""
        return [place for place in left if score(group, place).reaches(self.at_least)]


class Positive(GroupSelector):
    """What the verifier passed: rewards above a bar, by default above 0."""

    reason = "not positive"

    def __init__(self, above: float = 0.0) -> None:
        self.above = above

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What is above the bar."""
        return [place for place in left if score(group, place).exceeds(self.above)]


class Median(GroupSelector):
    """What is strictly above the median of its group, as TorchRL's `TopKRewardSelector` has it.

    So a group whose rewards are all equal keeps nothing. The median of an even number is the lower of the two
    in the middle, as torch's; their mean would keep the same rollouts.
    """

    reason = "not above the median"

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """The better half, less those that tie with the median."""
        ordered = sorted(reward(group, place) for place in left)
        return [place for place in left if reward(group, place) > ordered[(len(ordered) - 1) // 2]]


class TopFraction(Selector):
    """The best share of the whole step, whichever prompts they answer.

    At most `fraction` of what is left, at least one if anything is; ties go to what a newer policy sampled,
    then to the earlier prompt, then to the lower index.
    """

    reason = "not in the top fraction"

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """The best of the step."""
        ranked = sorted(
            (-reward(group, place), -group.rollouts[place].policy_version, row, place)
            for row, (group, places) in enumerate(zip(groups, left, strict=True))
            for place in places
        )
        number = share(self.fraction, len(ranked))
        best = {(row, place) for *_, row, place in ranked[:number]}
        return [[place for place in places if (row, place) in best] for row, places in enumerate(left)]


def quantile(values: Sequence[float], p: float) -> float:
    """The p-th quantile by linear interpolation, as numpy's and torch's default.

    Args:
        values: at least one.
        p: from 0 to 1.

    Returns:
        A value between the two that surround it, never above the largest by rounding.
    """
    ordered = sorted(values)
    below, part = divmod(p * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return min(max(low * (1 - part) + high * part, low), high)  # two products: a difference could overflow


def share(fraction: float, number: int) -> int:
    """At most `fraction` of `number` things, but one if there are any."""
    return min(number, max(1, math.floor(fraction * number + 1e-9)))  # 0.29 of 100 is 29
