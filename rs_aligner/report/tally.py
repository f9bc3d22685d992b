"""Means of what a selection keeps, with standard errors over prompts, in constant memory.

Prompts differ in how many of their rollouts are kept, so a mean over the kept is a ratio of two sums over
prompts, and its standard error is that of a ratio: with x and c a prompt's sum and count and R their ratio,
the residual x - R c of each prompt, sqrt(n / (n - 1) sum(residual^2)) / sum(c) (the delta method; Cochran,
"Sampling techniques", 1977, section 2.11). Rollouts of a prompt depend on each other; prompts do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rs_aligner.proof.estimates import best_of_k, kept_probability
from rs_aligner.rollout import Group, Score


@dataclass
class Ratio:
    """A ratio of two sums over prompts."""

    num: int = 0
    x: float = 0.0
    c: float = 0.0
    xx: float = 0.0
    xc: float = 0.0
    cc: float = 0.0

    def add(self, x: float, c: float) -> None:
        """Count a prompt: what is summed of it, and how much that is of."""
        self.num += 1
        self.x, self.c = self.x + x, self.c + c
        self.xx, self.xc, self.cc = self.xx + x * x, self.xc + x * c, self.cc + c * c

    @property
    def value(self) -> float | None:
        """The ratio; None of nothing."""
        return self.x / self.c if self.c else None

    @property
    def error(self) -> float | None:
        """Its standard error over prompts; None for fewer than two."""
        ratio = self.value
        if ratio is None or self.num < 2:
            return None
        squares = self.xx - 2 * ratio * self.xc + ratio * ratio * self.cc
        return math.sqrt(max(squares, 0.0) * self.num / (self.num - 1)) / abs(self.c)


@dataclass(frozen=True)
class Kept:
    """What is kept of a prompt; sums are over the kept, and any of it may be an expectation.

    Attributes:
        reward, selected: sums of rewards, and of what was selected by.
        chance: the sum that a choice at random of as many has.
        kept, seen: how many, and of how many.
        best: the highest reward of those that were seen; None without any.
    """

    reward: float
    selected: float
    chance: float
    kept: float
    seen: float
    best: float | None


@dataclass
class Outcome:
    """What was kept, over all prompts of the steps.

    Attributes:
        words: of the alternative.
        num_rollouts: of a prompt, the most that a selection saw.
        how: how fewer rollouts than recorded were chosen, in words.
        selected: mean of the kept by what was selected by.
        reward: mean reward of the kept; the same, unless it was selected by a component.
        chance: the same of a choice at random of as many rollouts of each prompt.
        gain: `reward` less `chance`.
        best: the best of so many rollouts, mean over prompts.
        kept: how many rollouts, expected.
        seen: how many rollouts there were to choose from, expected.
        reasons: how many were rejected for each reason, expected; empty where that has no closed form.
    """

    words: str
    num_rollouts: int = 0
    how: str = ""
    selected: Ratio = field(default_factory=Ratio)
    reward: Ratio = field(default_factory=Ratio)
    chance: Ratio = field(default_factory=Ratio)
    gain: Ratio = field(default_factory=Ratio)
    best: Ratio = field(default_factory=Ratio)
    kept: float = 0.0
    seen: float = 0.0
    reasons: dict[str, float] = field(default_factory=dict)

    def count(self, prompt: Kept) -> None:
        """Count a prompt."""
        self.kept, self.seen = self.kept + prompt.kept, self.seen + prompt.seen
        if prompt.best is not None:
            self.best.add(prompt.best, 1)
        self.selected.add(prompt.selected, prompt.kept)
        self.reward.add(prompt.reward, prompt.kept)
        self.chance.add(prompt.chance, prompt.kept)
        self.gain.add(prompt.reward - prompt.chance, prompt.kept)

    def explain(self, reasons: Mapping[str, float]) -> None:
        """Count rejections."""
        for reason, number in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0.0) + number


def kept_of(group: Group, judged: Group, places: Sequence[int]) -> Kept:
    """What is kept of a group, by its places.

    Args:
        group: with the rewards of the run.
        judged: the same with what was selected by.
        places: the kept.
    """
    rewards = {place: score.reward for place, score in enumerate(group.scores) if isinstance(score, Score)}
    kept = [place for place in places if place in rewards]
    return Kept(
        sum(rewards[place] for place in kept),
        sum(_reward(judged, place) for place in kept),
        len(kept) * fmean(rewards.values()) if rewards else 0.0,
        len(kept),
        len(group.rollouts),
        max(rewards.values(), default=None),
    )


def expected(group: Group, judged: Group, eligible: Sequence[int], drawn: int, top: int) -> Kept:
    """What is kept over all choices of `drawn` rollouts of a group, of each the best `top` eligible ones.

    Args:
        group, judged: as of `kept_of`.
        eligible: places of those that may be kept; all are scored.
        drawn: N, at most as many as there are.
        top: k.
    """
    rewards = [score.reward for score in group.scores if isinstance(score, Score)]
    ranked = sorted(eligible, key=lambda place: (-_reward(judged, place), place))
    chances = [kept_probability(len(group.rollouts), rank, drawn, top) for rank in range(len(ranked))]
    pairs = [
        (chance, place)
        for chance, place in zip(chances, ranked, strict=True)
        if isinstance(group.scores[place], Score)
    ]
    kept = math.fsum(chance for chance, _ in pairs)
    return Kept(
        math.fsum(chance * _reward(group, place) for chance, place in pairs),
        math.fsum(chance * _reward(judged, place) for chance, place in pairs),
        kept * fmean(rewards) if rewards else 0.0,
        kept,
        drawn,
        float(best_of_k(rewards, [drawn])[0]) if len(rewards) >= drawn else None,
    )


def mean_of(parts: Sequence[Kept]) -> Kept:
    """The mean over the parts that a group was cut into."""
    best = [part.best for part in parts if part.best is not None]
    return Kept(
        reward=fmean(part.reward for part in parts),
        selected=fmean(part.selected for part in parts),
        chance=fmean(part.chance for part in parts),
        kept=fmean(part.kept for part in parts),
        seen=fmean(part.seen for part in parts),
        best=fmean(best) if best else None,
    )


def _reward(group: Group, place: int) -> float:
    score = group.scores[place]
    assert isinstance(score, Score)
    return score.reward
