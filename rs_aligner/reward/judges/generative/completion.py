"""What a server answers to a chat completion: a text with its tokens, an error in words, what it cost.

Nothing that comes is trusted to be what it should be. Left out on purpose: what the text means (`verdicts`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rs_aligner.remote.errors import BadAnswer

_SHOWN = 80


class NoVerdict(ValueError):
    """An answer that is none that counts, and why."""


class Token(NamedTuple):
    """A token that was sampled, and the log-probabilities of those that could have been, by their texts."""

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said.

    Attributes:
        text: of its answer.
        is_cut: whether it ended at the limit of its length.
        tokens: of its answer; None where the server gave no log-probabilities.
        usage: what it cost, by the counters' names.
    """

    text: str
    is_cut: bool = False
    tokens: tuple[Token, ...] | None = None
    usage: Mapping[str, int] | None = None


def read_completion(body: bytes) -> Completion:
    """The completion in the body of an answer.

    Raises:
        BadAnswer: there is none.
        NoVerdict: there is one, and it is no answer to the question.
    """
    try:
        found = json.loads(body)
        choices = found["choices"]
        [choice] = choices
        message, reason = choice["message"], choice["finish_reason"]
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise BadAnswer(f"the answer is no chat completion with one choice: {shown(body)}") from None
    _refuse(message, reason, refusal, text)
    return Completion(text, reason == "length", _tokens(choice.get("logprobs")), usage_of(found))


def usage_of(found: Any) -> dict[str, int]:
    """The tokens that an answer says it cost; what it does not say is absent."""
    usage = found.get("usage") if isinstance(found, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int) and usage[name] >= 0}


def shown(text: str | bytes) -> str:
    """The beginning of a text, quoted, on one line."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}...")


def _refuse(message: Mapping[str, Any], reason: object, refusal: object, text: object) -> None:
    if refusal:
        raise NoVerdict(f"the model refuses to judge: {shown(str(refusal))}")
    if reason == "content_filter":
        raise NoVerdict("the server's filter kept the answer back (finish_reason content_filter)")
    if message.get("tool_calls"):
        raise NoVerdict("the model calls a tool instead of answering")
    if not isinstance(reason, str):
        raise NoVerdict("the answer does not say why it ended (finish_reason), so it may be half of one")
    if not isinstance(text, str) or not text.strip():
        thought = message.get("reasoning_content") or message.get("reasoning")
        beside = ", beside what it thought" if thought else ""
        raise NoVerdict(f"the answer is empty{beside} (finish_reason {reason}; see judge.kwargs.max_tokens)")


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    """The tokens with their log-probabilities; None where they are not what they should be."""
    try:
        return tuple(
            Token(
                str(one["token"]),
                tuple((str(top["token"]), _log_probability(top["logprob"])) for top in one["top_logprobs"]),
            )
            for one in logprobs["content"]
        )
    except (TypeError, KeyError, ValueError):
        return None


def _log_probability(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise ValueError(f"{value} is no log-probability")
    return number
