"""Pairs of answers to a prompt that two judges order otherwise, and by how much.

In a pair the judge prefers the one and the watched judge the other. How much that is, is the smaller of the
two differences, each in standard deviations of all scores that its judge has given so far, so that judges
with other scales can be compared. Left out on purpose: who is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from rs_aligner.report.summed_row import SummedRow, shown

MOST = 8
_LARGEST = 256  # rollouts of a prompt that are compared, each with each


class Spread(msgspec.Struct):
    """The standard deviation of numbers that come one after the other (Welford 1962)."""

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take a number in."""
        self.number += 1
        away = value - self.mean
        self.mean += away / self.number
        self.squares += away * (value - self.mean)

    @property
    def deviation(self) -> float:
        """With divisor N; 0 for none."""
        return math.sqrt(self.squares / self.number) if self.number else 0.0


class Disagreement(msgspec.Struct, frozen=True):
    """Two answers to a prompt: the one that the judge prefers, and the one that the watched judge prefers.

    Attributes:
        gap: in standard deviations.
        judged_first, judged_second: the judge's scores of the two.
        watched_first, watched_second: the watched judge's.
    """

    gap: float
    step: int
    prompt_id: str
    prompt: str
    first: str
    second: str
    judged_first: float
    judged_second: float
    watched_first: float
    watched_second: float


class Disagreements(msgspec.Struct):
    """The pairs with the largest gaps, at most one of a prompt in a step."""

    largest: list[Disagreement] = msgspec.field(default_factory=list)
    judged: Spread = msgspec.field(default_factory=Spread)
    watched: Spread = msgspec.field(default_factory=Spread)
    compared: int = 0
    """Groups in which both judges had at least two scores."""

    def look(self, step: int, group: Sequence[SummedRow]) -> None:
        """Look at the rollouts of a prompt."""
        both = [row for row in group if row.reward is not None and row.watched is not None][:_LARGEST]
        if not both:
            return
        for row in both:
            assert row.reward is not None
            assert row.watched is not None
            self.judged.add(row.reward)
            self.watched.add(row.watched)
        if len(both) < 2:
            return
        self.compared += 1
        scales = self.judged.deviation, self.watched.deviation
        if not all(scales):
            return
        judged = np.array([row.reward for row in both], dtype=np.float64) / scales[0]
        watched = np.array([row.watched for row in both], dtype=np.float64) / scales[1]
        gaps = np.minimum(judged[:, None] - judged, watched - watched[:, None])
        first, second = map(int, np.unravel_index(int(gaps.argmax()), gaps.shape))
        gap = float(gaps[first, second])
        if gap > 0 and (len(self.largest) < MOST or gap > self.largest[-1].gap):
            self._note(step, gap, both[first], both[second])

    def _note(self, step: int, gap: float, first: SummedRow, second: SummedRow) -> None:
        assert first.reward is not None
        assert second.reward is not None
        assert first.watched is not None
        assert second.watched is not None
        found = Disagreement(
            gap,
            step,
            shown(first.prompt_id),
            shown(first.prompt),
            shown(first.response),
            shown(second.response),
            first.reward,
            second.reward,
            first.watched,
            second.watched,
        )
        self.largest = sorted([*self.largest, found], key=lambda one: -one.gap)[:MOST]
