"""The hardest and the easiest prompts of a run: the two ends of their list, ordered by mean score.

Left out on purpose: the middle, of which there are as many prompts as a run has.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

KEPT = 64
"""Prompts of each end."""


class SeenPrompt(msgspec.Struct, frozen=True):
    """A prompt as a step saw it last: `mean` and `best` of the scores of its `number` rollouts."""

    id: str
    step: int
    text: str
    mean: float
    best: float
    number: int


class ListEnd:
    """One end of the list of prompts, by mean score: those that may be among its first `KEPT`.

    Args:
        prompts: that are there.
        sign: 1 for the lowest mean first, -1 for the highest.
    """

    def __init__(self, prompts: Iterable[SeenPrompt], sign: int) -> None:
        self._sign = sign
        self._known = {one.id: one for one in prompts}
        self._last: float | None = None  # the last one's mean, if it has been asked for since it changed

    def forget(self, name: str) -> None:
        """Take a prompt out, if it is there."""
        if self._known.pop(name, None) is not None:
            self._last = None

    def may_have(self, mean: float) -> bool:
        """Whether a prompt of this mean score belongs here."""
        if len(self._known) < KEPT:
            return True
        if self._last is None:
            self._last = max(self._sign * one.mean for one in self._known.values())
        return self._sign * mean <= self._last

    def add(self, prompt: SeenPrompt) -> None:
        """Add a prompt that was not there."""
        self._known[prompt.id] = prompt
        if len(self._known) > 2 * KEPT:
            self._known = {one.id: one for one in self.first()}
        self._last = None

    def first(self) -> list[SeenPrompt]:
        """The first of them; of equals the latest."""
        order = sorted(self._known.values(), key=lambda one: (self._sign * one.mean, -one.step, one.id))
        return order[:KEPT]
