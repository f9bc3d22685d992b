"""Our sampling controls in vLLM's words, so that they mean the same; what it cannot do is refused by name.

All that changes a token is said, since a server may have other defaults (of its model's
`generation_config.json`). Ends are said so that it stops early, and decided here (`ends`): vLLM looks for end
strings in a text of its own making.

    ours                     vLLM's
    greedy                   temperature 0, one choice for all rollouts of a prompt, which are equal
    end tokens               stop_token_ids, with ignore_eos: those of its model's files play no part
    end strings              stop, in the text with special tokens
    min_length               min_tokens: bars end tokens before it, and looks for strings behind it
    ids that may not come    the word by which a server of ours bars them, else allowed_token_ids: all others

Left out on purpose: temperatures that vLLM does not sample at (`config.rollout_servers`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rs_aligner.config.rollout_servers import temperature_problems
from rs_aligner.generation.allowed import ALWAYS, LATE, NEVER, AllowedTokens
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.remote.errors import BadAnswer
from rs_aligner.rollout import FinishReason

BARRED = "rs_aligner_barred"
"""Of a request's `vllm_xargs`, as `rollout_server.inside.rs_aligner_barring` knows it, too."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How all rollouts of a wave are sampled.

    Attributes:
        controls: how to sample.
        end_strings: what ends a response.
        allowed: which tokens may come.
        word: by which the servers know the ids that never may (`rollout_server.barred`); None if they do not.
    """

    controls: Controls
    end_strings: EndStrings
    allowed: AllowedTokens
    word: str | None = None

    def __post_init__(self) -> None:
        if not self.controls.greedy:
            for problem in temperature_problems("temperature", self.controls.temperature):
                raise ValueError(problem)

    def fields(self) -> dict[str, Any]:
        """The fields of a request that all of them have."""
        controls, vocab_size = self.controls, len(self.allowed.kinds)
        sampled = {
            "temperature": controls.temperature,
            "top_k": controls.top_k if controls.top_k < vocab_size else 0,
            "top_p": controls.top_p,
        }
        fields = {
            **({"temperature": 0.0, "top_k": 0, "top_p": 1.0} if controls.greedy else sampled),
            "min_p": 0.0,
            "repetition_penalty": controls.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(self.end_strings.eos_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }
        if controls.end_strings:
            fields |= {"stop": list(controls.end_strings), "include_stop_str_in_output": True}
        if self.word is not None:
            fields["vllm_xargs"] = {BARRED: self.word}
        elif (self.allowed.kinds == NEVER).any():
            fields["allowed_token_ids"] = np.flatnonzero(self.allowed.kinds != NEVER).tolist()
        return fields

    def ends(
        self, prompt: Sequence[int], tokens: Sequence[int], limit: int
    ) -> tuple[int, FinishReason] | None:
        """Where a response ends by our rules, and why; None if it goes on.

        Args:
            prompt: token ids.
            tokens: of the response.
            limit: most that it may have.

        Raises:
            BadAnswer: there is a token that may not come where it is.
        """
        kinds, least = self.allowed.kinds, self.controls.min_length
        for length, token in enumerate(tokens, 1):
            lowest = LATE if length > least else ALWAYS
            if not 0 <= token < len(kinds) or kinds[token] < lowest:
                raise BadAnswer(f"token {length} of a response is {token}, which may not come there")
            if token in self.end_strings.eos_ids or (
                length >= least and self._completes(prompt, tokens[:length])
            ):
                return length, "stop"
            if length == limit:
                return length, "length"
        return None

    def _completes(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the last token completes an end string."""
        ends = self.end_strings
        return bool(ends.end_strings) and ends.may_complete(tokens[-1]) and ends.completed(prompt, tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """Rollouts of a prompt whose seeds follow each other: one request.

    Attributes:
        rows: the rollouts; all may have as many tokens.
        asked: how they are sampled.
        fields: of the request, that all of the wave have.
        stops_at_strings: whether vLLM is to look for end strings.
    """

    rows: tuple[RolloutRow, ...]
    asked: Asked
    fields: Mapping[str, Any]
    stops_at_strings: bool = True

    @property
    def num_choices(self) -> int:
        """Answers that are asked for: greedy rollouts are all equal, and vLLM gives one."""
        return 1 if self.asked.controls.greedy else len(self.rows)

    @property
    def limit(self) -> int:
        """Most tokens of a rollout."""
        return self.rows[0].limit

    def body(self, model: str) -> dict[str, Any]:
        """The request, whose answer is to come as its rollouts end.

        Args:
            model: its name at the server.
        """
        first = self.rows[0]
        body = {
            **self.fields,
            "model": model,
            "prompt": list(first.prompt.token_ids),
            "n": self.num_choices,
            "seed": first.seed,
            "max_tokens": self.limit,
            "min_tokens": min(self.asked.controls.min_length, self.limit),
            "stream": True,
            "stream_interval": self.limit,  # tokens an event: the first one, and the others when it ends
        }
        if not self.stops_at_strings:
            body.pop("stop", None)
        return body

    def without(self, places: Container[int]) -> list[Run]:
        """The fewest runs that have the rollouts at other places than these."""
        rows = [row for place, row in enumerate(self.rows) if place not in places]
        return [replace(self, rows=part) for part in _in_a_row(rows)]


def runs_of(rows: Sequence[RolloutRow], asked: Asked) -> list[Run]:
    """The requests for a wave's rollouts: those of a prompt together, as far as their seeds follow."""
    fields = asked.fields()
    return [Run(part, asked, fields) for part in _in_a_row(rows)]


def _in_a_row(rows: Sequence[RolloutRow]) -> list[tuple[RolloutRow, ...]]:
    found: list[list[RolloutRow]] = []
    for row in rows:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and (row.group, row.limit) == (last.group, last.limit)
            and row.index - last.index == row.seed - last.seed == 1
        ):
            found[-1].append(row)
        else:
            found.append([row])
    return [tuple(part) for part in found]
