"""What goes wrong with a stand-in's answers (`stand_in.py`), as a real server can't be made to show it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.generation.vllm.stand_in import DONE, Answer, Fault, Streamed, streamed


def of_choices(change: Callable[[list[dict[str, Any]]], Any]) -> Fault:
    """Another list of choices, or the same one changed in place."""

    def fault(answer: Answer, ends: threading.Event) -> Answer:
        status, found = answer
        changed = change(found["choices"])
        return status, {**found, "choices": found["choices"] if changed is None else changed}

    return fault


def of_events(change: Callable[[list[Any]], list[Any]]) -> Fault:
    """Other pieces of a stream (`Streamed`): two for each rollout, and the last event."""

    def fault(answer: Answer, ends: threading.Event) -> Answer:
        return answer[0], Streamed(change(streamed(answer[1])))

    return fault


def _in_the_middle(**other: Any) -> Fault:
    """Another part of a choice, the first one behind an end; of one choice alone, its end."""

    def change(events: list[Any]) -> list[Any]:
        place = min(MIDDLE, len(events) - 2)
        [choice] = events[place]["choices"]
        changed = {**events[place], "choices": [{**choice, **other}]}
        return [*events[:place], changed, *events[place + 1 :]]

    return of_events(change)


def _error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "InternalServerError", "code": code}}


def _first(**other: Any) -> Fault:
    return of_choices(lambda choices: choices[0].update(other))


def _last(key: str, value: Any) -> Fault:
    """Another value for each token of the last choice."""

    def change(choices: list[dict[str, Any]]) -> None:
        place = choices[-1] if key == "token_ids" else choices[-1]["logprobs"]
        place[key] = [value] * len(choices[-1]["token_ids"])

    return of_choices(change)


def frozen(answer: Answer, ends: threading.Event) -> None:
    """No answer, and at its end none either."""
    ends.wait(20)


def late(answer: Answer, ends: threading.Event) -> Answer:
    """An answer in its own time."""
    time.sleep(0.2)
    return answer


FAULTS: dict[str, Fault] = {
    "garbage": lambda answer, ends: (200, b"\x00\xffgarbage"),
    "half an answer": of_events(
        lambda events: [*events[:-2], b"data: " + json.dumps(events[-2]).encode()[:-20]]
    ),
    "no stream": lambda answer, ends: (200, json.dumps(answer[1])),
    "no completion": lambda answer, ends: (200, {"object": "error"}),
    "a list": lambda answer, ends: (200, [1, 2]),
    "an error of its own": lambda answer, ends: (
        500,
        {"error": {"message": "EngineCore has an issue"}},
    ),
    "a gateway's error": lambda answer, ends: (502, b"<html><title>Bad Gateway</title></html>"),
    "a cut connection": lambda answer, ends: None,
    "a frozen server": frozen,
    "fewer choices": of_choices(lambda choices: choices[:-1]),
    "more choices": of_choices(lambda choices: [*choices, choices[-1]]),
    "a choice twice": of_choices(lambda choices: [choices[0]] * len(choices)),
    "ids of another vocabulary": _last("token_ids", 10**6),
    "ids that are none": _last("token_ids", True),
    "more tokens": of_choices(
        lambda choices: choices[0].update(
            token_ids=choices[0]["token_ids"] * 99,
            logprobs={"token_logprobs": choices[0]["logprobs"]["token_logprobs"] * 99},
        )
    ),
    "no token": _first(token_ids=[], logprobs={"token_logprobs": []}),
    "fewer tokens": of_choices(
        lambda choices: choices[0].update(
            token_ids=[5], logprobs={"token_logprobs": [-1.0]}, finish_reason="length"
        )
    ),
    "no reason": _first(finish_reason=None),
    "another reason": _first(finish_reason="abort"),
    "no token ids": _first(token_ids=None),
    "NaN": _last("token_logprobs", float("nan")),
    "minus infinity": _last("token_logprobs", float("-inf")),
    "no log-probabilities": _last("token_logprobs", None),
    "probabilities": _last("token_logprobs", 0.5),
    "fewer log-probabilities": _first(logprobs={"token_logprobs": [-1.0]}),
}
"""Of answers, however they come."""

MIDDLE = 4
"""Of a stream's pieces: three first tokens, and the rest of the first choice, which has ended then."""
STREAM_FAULTS: dict[str, Fault] = {
    "cut in the middle": of_events(lambda events: [*events[:MIDDLE], None]),
    "cut in an event": of_events(
        lambda events: [*events[:MIDDLE], b"data: " + json.dumps(events[MIDDLE]).encode()[:40], None]
    ),
    "an error in the middle": of_events(
        lambda events: [*events[:MIDDLE], _error("EngineCore has an issue", 500), DONE]
    ),
    "an error without a code": of_events(lambda events: [*events[:MIDDLE], {"error": "no more"}, DONE]),
    "garbage in the middle": of_events(
        lambda events: [*events[:MIDDLE], b"data: \x00\xff\n\n", *events[MIDDLE:]]
    ),
    "no JSON in the middle": of_events(lambda events: [*events[:MIDDLE], b"data: {\n\n", *events[MIDDLE:]]),
    "a list in the middle": of_events(lambda events: [*events[:MIDDLE], [1, 2], *events[MIDDLE:]]),
    "the last event too early": of_events(lambda events: [*events[:MIDDLE], DONE]),
    "an end without the last event": of_events(lambda events: events[:MIDDLE]),
    "frozen in the middle": lambda answer, ends: (
        answer[0],
        Streamed([*streamed(answer[1])[:MIDDLE], ends, None]),
    ),
    "an unknown choice": _in_the_middle(index=3),
    "a choice before the first": _in_the_middle(index=-1),
    "a choice that goes on after its end": _in_the_middle(index=0),
    "another reason in the middle": _in_the_middle(finish_reason="abort"),
    "ids without log-probabilities": _in_the_middle(logprobs=None),
    "an id more than log-probabilities": _in_the_middle(token_ids=[5] * 8),
    "more tokens in the middle": _in_the_middle(token_ids=[5] * 8, logprobs={"token_logprobs": [-1.0] * 8}),
    "an id that may not come": _in_the_middle(
        token_ids=[5] * 6 + [10**6], logprobs={"token_logprobs": [-1.0] * 7}
    ),
}
"""Of streams, behind the first choice's end."""
