"""`{name: pessimistic}` in `model.rs.selection`: a choice that distrusts the judge where judges disagree.

Left out on purpose: whether a judge gives such components. The selector (`selection/pessimistic.py`) tells at
the first step, when there are scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rs_aligner.config.base import NotNegative, Text, Texts, problem
from rs_aligner.config.selector import BestK


class PessimisticConfig(BestK):
    """The best of each prompt by a score that is lowered where those who judge disagree."""

    name: Literal["pessimistic"]
    components: Texts = ()
    """Components of the score that each judge the same, at least two; `reward` is the score itself."""
    scale: Literal["rank", "zscore", "none"] = "rank"
    """How `components` are compared: by rank in their prompt, standardised, or as they are."""
    disagreement: Text | None = None
    """In place of `components`: the one that says how far the judge disagrees with itself."""
    coefficient: NotNegative | None = None
    """How much disagreement lowers a score; null is the lowest of `components`, and 1 for `disagreement`."""

    @property
    def judges(self) -> tuple[str, ...]:
        return self.components

    @property
    def components_read(self) -> Sequence[tuple[str, str]]:
        own = [] if self.disagreement is None else [("disagreement", self.disagreement)]
        return [*(("components", name) for name in self.components), *own]

    def in_words(self) -> str:
        times = 1.0 if self.coefficient is None else self.coefficient
        if self.disagreement is not None:
            return f"the best {self.num} by reward less {times:g} times {self.disagreement}"
        names = " and ".join(self.components)
        if self.coefficient is None:
            return f"the best {self.num} by the lowest of {names}"
        return f"the best {self.num} by the mean of {names} less {times:g} times their spread"

    def problems(self, key: str) -> Iterator[str]:
        """There is one source of disagreement, and nothing is set that plays no part in it."""
        names = self.components
        if self.disagreement is None and not names:
            yield (
                f"{key}: nothing says where judges disagree; set {key}.components to two names or more "
                f"of judge.parts, or {key}.disagreement to a component such as a standard deviation"
            )
        elif self.disagreement is not None and names:
            yield problem(f"{key}.disagreement", self.disagreement, f"has no place beside {key}.components")
        elif self.disagreement is not None and self.scale != "rank":
            yield problem(f"{key}.scale", self.scale, f"is of {key}.components; leave it out")
        elif names and len(set(names)) < max(2, len(names)):
            yield problem(f"{key}.components", list(names), "should be two names or more, each once")
