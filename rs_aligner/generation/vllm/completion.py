"""What vLLM answers to `/v1/completions`, read and checked: nothing is trusted to be what it should be.

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


@dataclass(frozen=True, slots=True)
class Choice:
    """A response as the server has it: its tokens, their log-probabilities, and why it ended."""

    tokens: list[int]
    log_probs: list[float]
    reason: str


def read_choices(found: Any, count: int, most: int) -> list[Choice]:
    """The choices in an answer, in their order.

    Args:
        found: what the answer's JSON says.
        count: how many were asked for.
        most: tokens that each may have.

    Raises:
        BadAnswer: there are others.
    """
    try:
        by_place = {_whole(choice["index"]): _choice(choice, most) for choice in found["choices"]}
        given = len(found["choices"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"the answer is no completion by token ids: {in_short(error)}") from None
    if given != count or sorted(by_place) != list(range(count)):
        raise BadAnswer(f"the answer has {given} choices ({sorted(by_place)}), asked for were {count}")
    return [by_place[place] for place in range(count)]


def _choice(choice: Any, most: int) -> Choice:
    tokens = [_whole(token) for token in choice["token_ids"]]
    log_probs = [_log_prob(value) for value in choice["logprobs"]["token_logprobs"]]
    reason = choice["finish_reason"]
    if reason not in REASONS:
        raise ValueError(f"a response ended by {reason!r}")
    if not 1 <= len(tokens) <= most:
        raise ValueError(f"a response has {len(tokens)} tokens, where 1 to {most} were asked for")
    if len(tokens) != len(log_probs):
        raise ValueError(f"{len(tokens)} tokens have {len(log_probs)} log-probabilities")
    return Choice(tokens, log_probs, reason)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} should be a whole number")
    return value


def _log_prob(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value > _ROUNDING:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)
