"""What vLLM answers to `/v1/completions`, read and checked: nothing is trusted to be what it should be.

An answer is a stream of events, of which each has what has come of one or more choices since the last one.

Left out on purpose: the texts. Which text a response has follows from its tokens (`generation.text`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rs_aligner.remote.errors import BadAnswer
from rs_aligner.remote.transport import in_short

REASONS = ("stop", "length")
_ROUNDING = 1e-3  # above 0, of a log-probability that is 0


@dataclass(slots=True)
class Choice:
    """A response as the server has it: its tokens, their log-probabilities, and why it ended, if it has."""

    tokens: list[int]
    log_probs: list[float]
    reason: str | None = None


class Choices:
    """The choices of an answer while it comes.

    Args:
        count: how many were asked for.
        most: tokens that each may have.
    """

    def __init__(self, count: int, most: int) -> None:
        self._all = [Choice([], []) for _ in range(count)]
        self._most = most

    def take(self, event: Any) -> list[tuple[int, Choice]]:
        """Those that end with this event, with their numbers.

        Args:
            event: what its JSON says.

        Raises:
            BadAnswer: it cannot be part of the answer.
        """
        try:
            return [found for one in event["choices"] if (found := self._grown(one)) is not None]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadAnswer(f"the answer is no completion by token ids: {in_short(error)}") from None

    def finish(self) -> list[Choice]:
        """All of them, once the answer is over.

        Raises:
            BadAnswer: one has not ended.
        """
        ended = [place for place, one in enumerate(self._all) if one.reason is not None]
        if len(ended) < len(self._all):
            whole = f"{len(ended)} choices ({ended})"
            raise BadAnswer(f"the answer has {whole}, asked for were {len(self._all)}")
        return self._all

    def _grown(self, part: Any) -> tuple[int, Choice] | None:
        place, reason = _whole(part["index"]), part["finish_reason"]
        tokens = [_whole(token) for token in part["token_ids"]]
        log_probs = [_log_prob(value) for value in part["logprobs"]["token_logprobs"]]
        if not 0 <= place < len(self._all):
            raise ValueError(f"there is a choice {place}, where {len(self._all)} were asked for")
        choice = self._all[place]
        if choice.reason is not None:
            raise ValueError(f"choice {place} goes on after it has ended")
        if len(tokens) != len(log_probs):
            raise ValueError(f"{len(tokens)} tokens have {len(log_probs)} log-probabilities")
        choice.tokens += tokens
        choice.log_probs += log_probs
        if len(choice.tokens) > self._most:
            raise ValueError(f"a response has {len(choice.tokens)} tokens, where {self._most} were asked for")
        if reason is None:
            return None
        if reason not in REASONS:
            raise ValueError(f"a response ended by {reason!r}")
        if not choice.tokens:
            raise ValueError("a response has no token")
        choice.reason = reason
        return place, choice


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} should be a whole number")
    return value


def _log_prob(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value > _ROUNDING:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)
