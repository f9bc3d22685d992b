"""Held-out answers of several runs, prompt by prompt: what one run gained over another.

Two runs that looked at the same prompts are compared pair by pair: of each prompt the difference between the
means of its answers, and of these the mean with its standard error over prompts. That leaves out how hard
prompts are, which is most of what a mean over prompts scatters by. Prompts are the same if their texts are;
of a text that is there twice, the first goes with the first. Left out on purpose: a correction for having
compared many runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean, stdev

from rs_aligner.report.run_data import RunData

Key = tuple[str, int]
"""A prompt: its text, and which of those with this text."""
_SHOWN = 1200  # characters of an answer that are held


@dataclass(frozen=True)
class Answered:
    """A held-out prompt with what a run answered.

    Attributes:
        mean: score of its answers that have one.
        first: text of the first answer.
        first_score: its score; None without one.
    """

    mean: float
    first: str
    first_score: float | None


@dataclass
class Look:
    """A look at held-out prompts behind a step; prompts without any score are left out."""

    step: int
    prompts: dict[Key, Answered] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean over prompts."""
        return fmean(one.mean for one in self.prompts.values())

    @property
    def error(self) -> float | None:
        """Its standard error over prompts; None of one prompt."""
        return _error([one.mean for one in self.prompts.values()])


@dataclass(frozen=True)
class Gain:
    """How much better one look is than another.

    Attributes:
        mean, error: the difference, and its standard error; None of one prompt.
        num_prompts: prompts that both looked at, where it is paired.
        is_paired: whether it is of pairs; otherwise the difference of two means over other prompts.
    """

    mean: float
    error: float | None
    num_prompts: int
    is_paired: bool


def look_of(run: RunData, step: int) -> Look | None:
    """A run's look behind a step; None where nothing of it was scored.

    Raises:
        ValueError: it is not there, or not as it was written.
    """
    look, seen = Look(step), Counter[str]()
    for _, rows in groupby(run.held_out_rows(step), key=lambda row: row.group):
        answers = list(rows)
        text, scores = answers[0].prompt, [row.reward for row in answers if row.reward is not None]
        seen[text] += 1
        if scores:
            first = answers[0]
            look.prompts[text, seen[text]] = Answered(fmean(scores), first.response[:_SHOWN], first.reward)
    return look if look.prompts else None


def gain(one: Look, other: Look) -> Gain:
    """How much better `one` is than `other`: by pairs where they have two prompts in common."""
    common = one.prompts.keys() & other.prompts.keys()
    if len(common) >= 2:
        differences = [one.prompts[key].mean - other.prompts[key].mean for key in sorted(common)]
        return Gain(fmean(differences), _error(differences), len(common), True)
    errors = one.error, other.error
    error = None if None in errors else math.hypot(*(found for found in errors if found is not None))
    return Gain(one.mean - other.mean, error, 0, False)


def side_by_side(looks: Mapping[str, Look], most: int) -> list[Key]:
    """Prompts that all looks have: those whose means differ most between the last look and the first.

    Half of them are where the last one gained most, half where it lost most.
    """
    first, *_, last = looks.values()
    common = set(first.prompts).intersection(*(look.prompts for look in looks.values()))
    order = sorted(common, key=lambda key: (last.prompts[key].mean - first.prompts[key].mean, key))
    if len(order) <= most:
        return order[::-1]
    return [*order[: -most // 2 - 1 : -1], *order[: most // 2]]


def _error(values: list[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
