"""`model.data`: the data files, and how a row becomes a prompt.

Left out on purpose: which rows a command needs; each command's config says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf
from typing import Any, Literal

from pydantic import Field

from rs_aligner.config.base import (
    Count,
    JudgeSpecialTokens,
    Section,
    Template,
    Text,
    Texts,
    data_problems,
    is_weight,
    problem,
)


class DataPrefix(Section):
    """The data files: JSON Lines, JSON, parquet or Arrow, or folders that `datasets` saved (docs/data.md)."""

    train: Texts
    """Files to train on: a path or a list of paths; with weights [0.3, a.jsonl, 0.7, b.jsonl]."""
    validation: Texts = ()
    """Held-out prompts, never trained on: a path or a list of paths; empty for no validation."""

    @property
    def is_weighted(self) -> bool:
        """Whether weights and files take turns in `train`."""
        numbers = [is_weight(name) for name in self.train]
        return bool(numbers) and numbers == [True, False] * (len(numbers) // 2)

    @property
    def train_files(self) -> tuple[str, ...]:
        """The files to train on."""
        return self.train[1::2] if self.is_weighted else self.train

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of them; empty where every row counts alike."""
        return tuple(map(float, self.train[::2])) if self.is_weighted else ()

    def problems(self, key: str) -> Iterator[str]:
        """The files are there, and weights are some."""
        yield from data_problems(f"{key}.train", self.train_files)
        for weight, file in zip(self.weights, self.train_files, strict=False):
            if not 0 < weight < inf:
                yield problem(f"{key}.train", weight, f"a weight should be above 0; or drop it, and {file}")
        for file, number in Counter(self.train_files if self.weights else ()).items():
            if number > 1:
                yield problem(f"{key}.train", file, "has several weights; name it once, with their sum")
        yield from data_problems(f"{key}.validation", self.validation)


class ReadingConfig(Section):
    """How a row becomes a prompt."""

    seq_length: Count | None = None
    """A prompt of more tokens is left out and counted; null for what `max_length` leaves of the sequence."""
    prompt_template: Template | None = None
    """Makes the prompt, e.g. "Question: {question}\\nAnswer:"; null takes `text` or `messages`."""
    columns: dict[Text, Text] = Field(default_factory=dict)
    """Our names for what a row has elsewhere, e.g. {text: question, answer: reward_model.ground_truth}."""
    add_bos: bool | None = None
    """Whether a prompt starts with the begin token; null leaves it to the tokenizer and its chat template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the chat template, such as {enable_thinking: false}; a row may have some of its own."""


class DataConfig(ReadingConfig):
    """What is read, and how a row becomes a prompt."""

    data_prefix: DataPrefix
    """The data files, e.g. "model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl]}"."""
    overlap: Literal["warn", "drop", "refuse"] = "warn"
    """What becomes of rows to train on whose prompt is a validation prompt, too: `drop` leaves them out.

    Prompts are the same if they differ in case and white space only.
    """


class PolicyDataConfig(DataConfig):
    """What is read, how a row becomes a prompt, and how a response becomes a text."""

    judge_special_tokens: JudgeSpecialTokens = False
    """Special tokens that a response's text shows to the judge: false for none, true for all, or a list."""
