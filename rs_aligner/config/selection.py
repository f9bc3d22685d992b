"""`model.rs.selection`: the selectors that may stand in a chain, a section for each, told apart by `name`.

Each says what it keeps in words and at most, and what has to hold among its keys. Left out on purpose: what
they do (`rs_aligner/selection/`), and what a chain of them comes to (`chain.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rs_aligner.config.base import (
    Count,
    Fraction,
    Real,
    Share,
    Size,
    Text,
    function_problems,
    problem,
)
from rs_aligner.config.pessimistic import PessimisticConfig
from rs_aligner.config.selector import BestK, Most, SelectorSection, UpToK


def _pattern(value: Any) -> Any:
    if isinstance(value, str):
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        if groups != 1:
            raise ValueError(f'should have one group, not {groups}, around the answer: "answer is (.+)"')
    return value


class TopKConfig(BestK):
    """The best of each prompt."""

    name: Literal["topk"]

    def in_words(self) -> str:
        return f"the best {self.num}"


class PercentileConfig(SelectorSection):
    """What is at or above the p-th percentile of its prompt's rewards, a bar that rises."""

    name: Literal["percentile"]
    start: Share = 0.7
    """p at the first pass, from 0 to 1."""
    end: Share = 0.95
    """p at the last pass, and where there is only one; p rises in equal steps."""
    over: Literal["improve_steps", "run"] = "improve_steps"
    """Whether p rises over the passes through a pool, or over the steps of the whole run."""
    above_lowest: bool = False
    """Whether the lowest reward of the step is below every bar, unless all rewards of the step are equal."""

    def in_words(self) -> str:
        rising = "" if self.start == self.end else f", rising to {self.end:g}"
        lowest = ", above the step's lowest" if self.above_lowest else ""
        return f"from the {self.start:g} quantile of the prompt up{rising}{lowest}"

    def problems(self, key: str) -> Iterator[str]:
        """The bar does not fall."""
        if self.start > self.end:
            yield problem(f"{key}.start", self.start, f"should be at most {key}.end = {self.end}")


class ThresholdConfig(SelectorSection):
    """What reaches a fixed reward."""

    name: Literal["threshold"]
    at_least: Real
    """The least reward that passes."""

    def in_words(self) -> str:
        return f"scored {self.at_least:g} or more"


class PositiveConfig(SelectorSection):
    """What the verifier passed."""

    name: Literal["positive"]
    above: Real = 0.0
    """The reward has to be above it."""

    def in_words(self) -> str:
        return f"scored above {self.above:g}"


class TopFractionConfig(SelectorSection):
    """The best share of the whole step, whichever prompts they answer."""

    name: Literal["top_fraction"]
    fraction: Fraction
    """Share of what is left that passes at most; one does if any is left."""

    def in_words(self) -> str:
        return f"the best {100 * self.fraction:g}% of the step"

    def keeps(self, left: Most) -> Most:
        share = max(1, int(self.fraction * left.whole + 1e-9)) if left.whole else 0
        return Most(left.each, share)


class MedianConfig(SelectorSection):
    """What is strictly above the median of its prompt's rewards."""

    name: Literal["median"]

    def in_words(self) -> str:
        return "above the prompt's median"

    def keeps(self, left: Most) -> Most:
        return Most(left.each // 2, left.whole // 2)


class AllConfig(SelectorSection):
    """All that is left: for objectives that use rejected rollouts, too."""

    name: Literal["all"]

    def in_words(self) -> str:
        return "all that is left"


class TruncatedConfig(SelectorSection):
    """Rejects what reached the length limit instead of coming to an end."""

    name: Literal["truncated"]

    def in_words(self) -> str:
        return "not truncated"


class LengthConfig(SelectorSection):
    """Rejects what is too short or too long."""

    name: Literal["length"]
    min_tokens: Size | None = None
    """Fewest tokens of a response, its ending token included; null for no bound."""
    max_tokens: Count | None = None
    """Most tokens of a response, its ending token included; null for no bound."""

    def in_words(self) -> str:
        least = f"{self.min_tokens or 0:,}"
        if self.max_tokens is None:
            return f"{least} tokens or more"
        return f"{least} to {self.max_tokens:,} tokens"

    def problems(self, key: str) -> Iterator[str]:
        """There is a bound, and something between two of them."""
        least, most = self.min_tokens, self.max_tokens
        if least is None and most is None:
            yield f"{key}: nothing is set; set {key}.min_tokens, {key}.max_tokens or both"
        if least is not None and most is not None and least > most:
            yield problem(f"{key}.min_tokens", least, f"should be at most {key}.max_tokens = {most}")


class DuplicatesConfig(SelectorSection):
    """Rejects a response that is there twice; the better one stays."""

    name: Literal["duplicates"]
    normalized: bool = False
    """Whether case, kinds of white space and Unicode's variants of a character make no difference."""
    against: Literal["group", "earlier", "both"] = "group"
    """Compared with the prompt's other responses, with those kept of it at earlier steps, or with both."""

    def in_words(self) -> str:
        where = {"group": "", "earlier": " of earlier steps", "both": ", nor of earlier steps"}
        return f"no duplicates{where[self.against]}"


class NearDuplicatesConfig(SelectorSection):
    """Rejects a response that is much like a better one of the same prompt."""

    name: Literal["near_duplicates"]
    n: Count = 3
    """Tokens of an n-gram (measure: ngram)."""
    similarity: Fraction = 0.8
    """From here on two responses are too much alike; 1 is the same."""
    measure: Literal["ngram", "edit"] = "ngram"
    """`ngram`: the share of token n-grams in common; `edit`: 1 less edit distance over the longer length."""

    def in_words(self) -> str:
        return f"no near-duplicates ({self.measure}, {self.similarity:g})"


class DistinctAnswersConfig(UpToK):
    """Rejects more than k responses to a prompt that come to the same final answer."""

    name: Literal["distinct_answers"]
    k: Count = 1
    """Most responses of each answer; the best stay."""
    pattern: Annotated[Text | None, BeforeValidator(_pattern)] = None
    """A regular expression with one group, the answer; null finds it as the judge `final_answer` does."""

    def in_words(self) -> str:
        return f"at most {self.k} of each answer"


class PassRateConfig(SelectorSection):
    """Rejects prompts that are solved too seldom or too often."""

    name: Literal["pass_rate"]
    min: Share | None = 0.0
    """The share of a prompt's scored rollouts that solve it is above this; null for no bound."""
    max: Share | None = 1.0
    """That share is below this; null for no bound."""
    above: Real = 0.0
    """A rollout solves the prompt if its reward is above this."""

    def in_words(self) -> str:
        bounds = (("above", self.min), ("below", self.max))
        told = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        return f"of prompts with a pass rate {' and '.join(told)}"

    def problems(self, key: str) -> Iterator[str]:
        """There is a bound, and something between two of them."""
        if self.min is None and self.max is None:
            yield f"{key}: nothing is set; set {key}.min, {key}.max or both"
        if self.min is not None and self.max is not None and self.min >= self.max:
            yield problem(f"{key}.min", self.min, f"should be below {key}.max = {self.max}")


class FunctionConfig(SelectorSection):
    """A function of the user, asked once for each prompt."""

    name: Literal["function"]
    function: Text
    """path/to/file.py:name or package.module:name; f(prompt, responses, rewards, metadata) returns bools."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the function."""

    def in_words(self) -> str:
        return f"what {self.function} keeps"

    def problems(self, key: str) -> Iterator[str]:
        """The function could be found."""
        yield from function_problems(f"{key}.function", self.function)


class DiverseConfig(UpToK):
    """The k responses to a prompt that differ most from each other, the best first."""

    name: Literal["diverse"]
    k: Count
    """How many of a prompt."""
    n: Count = 3
    """Tokens of the n-grams by which responses differ."""

    def in_words(self) -> str:
        return f"the {self.k} most different"

    def keeps(self, left: Most) -> Most:
        return Most(min(left.each, self.k), left.whole)


SelectorConfig = Annotated[
    TopKConfig
    | PercentileConfig
    | ThresholdConfig
    | PositiveConfig
    | TopFractionConfig
    | MedianConfig
    | AllConfig
    | TruncatedConfig
    | LengthConfig
    | DuplicatesConfig
    | NearDuplicatesConfig
    | DistinctAnswersConfig
    | PassRateConfig
    | FunctionConfig
    | DiverseConfig
    | PessimisticConfig,
    Field(discriminator="name"),
]
