"""`model.rs.selection`: the selectors that may stand in a chain, a section for each, told apart by `name`.

What they do is in `rs_aligner/selection/`; what has to hold among their keys, and what a chain comes to, in
`chain.py` here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rs_aligner.config.base import Count, Fraction, Real, Section, Share, Size, Text


def _pattern(value: Any) -> Any:
    if isinstance(value, str):
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        if groups != 1:
            raise ValueError(f'should have one group, not {groups}, around the answer: "answer is (.+)"')
    return value


class TopKConfig(Section):
    """The best of each prompt."""

    name: Literal["topk"]
    k: Count | None = None
    """How many of a prompt; null is `model.rs.top_n_rollouts`."""


class PercentileConfig(Section):
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


class ThresholdConfig(Section):
    """What reaches a fixed reward."""

    name: Literal["threshold"]
    at_least: Real
    """The least reward that passes."""


class PositiveConfig(Section):
    """What the verifier passed."""

    name: Literal["positive"]
    above: Real = 0.0
    """The reward has to be above it."""


class TopFractionConfig(Section):
    """The best share of the whole step, whichever prompts they answer."""

    name: Literal["top_fraction"]
    fraction: Fraction
    """Share of what is left that passes at most; one does if any is left."""


class MedianConfig(Section):
    """What is strictly above the median of its prompt's rewards."""

    name: Literal["median"]


class AllConfig(Section):
    """All that is left: for objectives that use rejected rollouts, too."""

    name: Literal["all"]


class TruncatedConfig(Section):
    """Rejects what reached the length limit instead of coming to an end."""

    name: Literal["truncated"]


class LengthConfig(Section):
    """Rejects what is too short or too long."""

    name: Literal["length"]
    min_tokens: Size | None = None
    """Fewest tokens of a response, its ending token included; null for no bound."""
    max_tokens: Count | None = None
    """Most tokens of a response, its ending token included; null for no bound."""


class DuplicatesConfig(Section):
    """Rejects a response that is there twice; the better one stays."""

    name: Literal["duplicates"]
    normalized: bool = False
    """Whether case, kinds of white space and Unicode's variants of a character make no difference."""
    against: Literal["group", "earlier", "both"] = "group"
    """Compared with the prompt's other responses, with those kept of it at earlier steps, or with both."""


class NearDuplicatesConfig(Section):
    """Rejects a response that is much like a better one of the same prompt."""

    name: Literal["near_duplicates"]
    n: Count = 3
    """Tokens of an n-gram (measure: ngram)."""
    similarity: Fraction = 0.8
    """From here on two responses are too much alike; 1 is the same."""
    measure: Literal["ngram", "edit"] = "ngram"
    """`ngram`: the share of token n-grams in common; `edit`: 1 less edit distance over the longer length."""


class DistinctAnswersConfig(Section):
    """Rejects more than k responses to a prompt that come to the same final answer."""

    name: Literal["distinct_answers"]
    k: Count = 1
    """Most responses of each answer; the best stay."""
    pattern: Annotated[Text | None, BeforeValidator(_pattern)] = None
    """A regular expression with one group, the answer; null finds it as the judge `final_answer` does."""


class PassRateConfig(Section):
    """Rejects prompts that are solved too seldom or too often."""

    name: Literal["pass_rate"]
    min: Share | None = 0.0
    """The share of a prompt's scored rollouts that solve it is above this; null for no bound."""
    max: Share | None = 1.0
    """That share is below this; null for no bound."""
    above: Real = 0.0
    """A rollout solves the prompt if its reward is above this."""


class FunctionConfig(Section):
    """A function of the user, asked once for each prompt."""

    name: Literal["function"]
    function: Text
    """path/to/file.py:name or package.module:name; f(prompt, responses, rewards, metadata) returns bools."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the function."""


class DiverseConfig(Section):
    """The k responses to a prompt that differ most from each other, the best first."""

    name: Literal["diverse"]
    k: Count
    """How many of a prompt."""
    n: Count = 3
    """Tokens of the n-grams by which responses differ."""


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
    | DiverseConfig,
    Field(discriminator="name"),
]
