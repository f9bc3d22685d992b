"""What gives a response its score: a judge that comes with RS Aligner, a user's function, or a sum of some.

Left out on purpose: a judge's own keyword arguments, which it checks itself, but for those that have a
section (`SETTINGS`), and the server (`serve_reward.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from rs_aligner.config.base import (
    FUNCTION,
    ConfigError,
    Count,
    Positive,
    Real,
    Section,
    Text,
    function_problems,
    problem,
)
from rs_aligner.config.openai_judge import OpenAIConfig
from rs_aligner.config.reading import read_section

JudgeName = Literal[
    "exact_answer",
    "final_answer",
    "choice",
    "code",
    "regex",
    "length",
    "format",
    "sentiment",
    "huggingface",
    "megatron_reward_model",
    "openai",
]

SPREAD: tuple[JudgeName, ...] = ("code", "regex")
"""What `workers` is for, beside functions."""

SETTINGS: dict[JudgeName | None, type[Section]] = {"openai": OpenAIConfig}
"""Judges whose `kwargs` are looked at with the config."""


class JudgeSource(Section):
    """What gives a response its score; exactly one of `function` and `name`."""

    function: Text | None = None
    """A Python function or class: path/to/file.py:name or package.module:name."""
    name: JudgeName | None = None
    """A judge that comes with RS Aligner."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the judge."""
    time_limit: Positive | None = 5
    """Seconds that `function`, `regex` or `final_answer` may take over a row, or it fails; null for no limit.

    A function has a process of its own, with a limit a `regex` too, which is ended when a row takes longer.
    Of `openai` it is the time of a request. Of `code` it is for a row's tests: what is not passed by then has
    not passed.
    """
    workers: Count = 1
    """Processes that a `function` or a `regex` has, so that a slow row, or one that hangs, holds up no other.

    Each loads the judge. Of `code`, how many rows are judged at once. Scores are the same whatever their
    number, for a judge that remembers nothing.
    """

    @property
    def _ways(self) -> dict[str, Any]:
        """What there is to name a judge by."""
        return {"function": self.function, "name": self.name}

    def problems(self, key: str) -> Iterator[str]:
        """One way to score is named, and a function could be found."""
        named = [way for way, value in self._ways.items() if value]
        if len(named) != 1:
            yield (
                f"{key}: {' and '.join(named) or 'nothing'} is set; set one of {key}.name, e.g. to "
                f"exact_answer, {key}.function, to {FUNCTION}"
                + (f", and {key}.parts, a judge by each name" if "parts" in self._ways else "")
            )
        if self.workers > 1 and self.function is None and self.name not in SPREAD:
            spread = f"only {key}.function and {key}.name={' or '.join(SPREAD)} are spread over processes"
            parts = f"; set {key}.parts.*.workers" if "parts" in named else "; leave it at 1"
            yield problem(f"{key}.workers", self.workers, spread + parts)
        if self.function is not None:
            yield from function_problems(f"{key}.function", self.function)
        if self.function is None and self.name in SETTINGS:
            try:
                read_section(SETTINGS[self.name], self.kwargs, f"{key}.kwargs")
            except ConfigError as error:
                yield from error.problems


class JudgePart(JudgeSource):
    """One of the judges whose weighted sum is the reward."""

    weight: Real = 1.0
    """What its reward is multiplied by."""


class JudgeConfig(JudgeSource):
    """What gives a response its score; exactly one of `function`, `name` and `parts`."""

    parts: dict[str, JudgePart] = Field(default_factory=dict)
    """Judges whose weighted sum is the reward, by the names of their components."""

    @property
    def _ways(self) -> dict[str, Any]:
        return {**super()._ways, "parts": self.parts}
