"""What the section of a selector knows of it: its words, how much it keeps at most, and what it needs.

A selector is a section in `selection.py`, in the union there, and a class in `rs_aligner/selection/`, with a
row in the table of its `chain.py`. Left out on purpose: a guess of how much a selector will keep. What passes
a bar depends on the judge.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from rs_aligner.config.base import Count, Section, problem


@dataclass(frozen=True, slots=True)
class Most:
    """Most rollouts that there can be in a step, as if all passed every bar and equal rewards tied.

    Attributes:
        each: of a prompt.
        whole: of all prompts together.
    """

    each: int
    whole: int


class SelectorSection(Section):
    """A selector's section. Its own `problems` are what has to hold among its keys."""

    name: str
    """Which selector it is; a literal in each section."""

    @abstractmethod
    def in_words(self) -> str:
        """What it keeps, for the plan: a part of `not truncated, then scored above 0, then the best 4`."""

    def keeps(self, left: Most) -> Most:
        """Most rollouts that it leaves of so many: all of them, unless a selector says otherwise."""
        return left

    def beyond(self, key: str, bound: str, most: int) -> Iterator[str]:
        """What is wrong where a prompt has at most so many rollouts, a line for each problem.

        Args:
            key: where the section stands.
            bound: the key that says so.
            most: its value.
        """
        return iter(())

    @property
    def judges(self) -> tuple[str, ...]:
        """Components of the score that it takes for judges of the same thing."""
        return ()

    @property
    def components_read(self) -> Sequence[tuple[str, str]]:
        """Components of the score that it reads, each behind the key that names it."""
        return ()

    @property
    def reads_top_n(self) -> bool:
        """Whether `model.rs.top_n_rollouts` stands in for a key that is not set."""
        return False

    def with_top_n(self, top_n: int) -> Self:
        """The section with `model.rs.top_n_rollouts` in place of what it `reads_top_n` for."""
        return self


class UpToK(SelectorSection):
    """A selector that keeps at most `k` of something of a prompt."""

    k: Count | None

    def beyond(self, key: str, bound: str, most: int) -> Iterator[str]:
        """A prompt can have `k` rollouts."""
        if self.k is not None and self.k > most:
            yield problem(f"{key}.k", self.k, f"should be at most {bound} = {most}")


class BestK(UpToK):
    """A selector that keeps the `k` best of each prompt, by whatever it holds for good."""

    k: Count | None = None
    """How many of a prompt; null is `model.rs.top_n_rollouts`."""

    @property
    def num(self) -> int:
        """`k`, once it has been filled in."""
        assert self.k is not None, "with_top_n comes first"
        return self.k

    @property
    def reads_top_n(self) -> bool:
        return self.k is None

    def with_top_n(self, top_n: int) -> Self:
        return self.model_copy(update={"k": top_n}) if self.reads_top_n else self

    def keeps(self, left: Most) -> Most:
        return Most(min(left.each, self.num), left.whole)
