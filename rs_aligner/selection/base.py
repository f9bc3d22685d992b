"""What a selector is: it is shown what the selectors before it left, and says what it leaves.

A rollout is named by its place in its group. So a step's candidates are a list of places for each group, in
rising order, and a selector returns such lists, each a part of what it was given. It is a pure function of
groups, candidates and progress, so that every rank comes to the same selection; the one that remembers
earlier steps is fed by all ranks alike. Left out on purpose: what a rejected rollout is good for (objectives
that use it take it from the groups).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rs_aligner.rollout import Group, Score

Places = Sequence[int]
"""Rollouts of a group, by their places there, in rising order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for bars that rise.

    Attributes:
        step: counted from 1.
        num_steps: steps of the whole run.
        improve_step: which pass over the pool this is, counted from 0.
        num_improve_steps: passes over a pool; 1 where there is no pool.

    Raises:
        ValueError: a count below 1, or a step that is not one of so many.
    """

    step: int
    num_steps: int
    improve_step: int = 0
    num_improve_steps: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.num_steps:
            raise ValueError(f"step {self.step} is none of {self.num_steps} steps, which count from 1")
        if not 0 <= self.improve_step < self.num_improve_steps:
            raise ValueError(
                f"improve_step {self.improve_step} is none of {self.num_improve_steps}, which count from 0"
            )


class Selector(ABC):
    """One link of the chain.

    Attributes:
        reason: why it rejects what it rejects; the same at every step.
        remembers: whether it compares with earlier steps.
    """

    reason: str
    remembers: bool = False

    @abstractmethod
    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """What stays.

        Args:
            groups: the whole step, in data order.
            left: of each group the rollouts that no selector rejected yet; all of them have a score.
            progress: how far the run is.

        Returns:
            Of each group a part of what was left, in rising order.
        """

    # Not abstract although empty (B027): only selectors that compare with earlier steps have one.
    def remember(self, group: Group, place: int) -> None:  # noqa: B027  # most selectors remember nothing
        """Take note of a rollout that was trained on. Most selectors look at one step only."""


class GroupSelector(Selector):
    """A selector that looks at each group by itself."""

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """What stays of each group; one of which nothing is left is not looked at."""
        pairs = zip(groups, left, strict=True)
        return [sorted(self.of_group(group, places, progress)) if places else () for group, places in pairs]

    @abstractmethod
    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What stays of a group, in any order; `left` is not empty."""


def reward(group: Group, place: int) -> float:
    """The reward of a scored rollout."""
    return score(group, place).reward


def score(group: Group, place: int) -> Score:
    """The score of a scored rollout."""
    found = group.scores[place]
    assert isinstance(found, Score)
    return found


def best_first(group: Group, places: Places) -> list[int]:
    """Places by falling reward, ties in rising order."""
    return sorted(places, key=lambda place: (-reward(group, place), place))
