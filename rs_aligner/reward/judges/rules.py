"""Judges that look at the form of a response: a regular expression, its length, its format.

Where the prompt begins the answer already, as with the `<think>` of a chat template, `regex` and `format`
look at the answer from there; `length` counts what the policy wrote.

Each gives 1.0 or 0.0; `judge.parts` weighs several of them, or them and others, into one reward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

from rs_aligner.reward.judges.base import BadSetting, Metadata, whole_answers


def regex(
    prompts: list[str],
    responses: list[str],
    metadata: list[Metadata],
    *,
    pattern: str,
    full: bool = False,
    ignore_case: bool = False,
) -> list[float]:
    """Reward a response in which a regular expression is found.

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: for what the prompt begins the answer with.
        pattern: in Python's syntax; `.` matches line ends, too.
        full: whether it has to match the whole response.
        ignore_case: whether case plays no part.

    Raises:
        BadSetting: not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except re.error as error:
        raise BadSetting(f"judge.kwargs.pattern is {pattern!r}: {error}") from None
    find = compiled.fullmatch if full else compiled.search
    return [float(find(answer) is not None) for answer in whole_answers(responses, metadata)]


def length(
    prompts: list[str],
    responses: list[str],
    metadata: list[Metadata],
    *,
    at_least: int = 0,
    at_most: int | None = None,
    unit: Literal["words", "characters", "lines"] = "words",
) -> list[float]:
    """Reward a response that is neither too short nor too long.

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: not looked at.
        at_least: the shortest that is right.
        at_most: the longest; None for no bound.
        unit: what is counted: words between white space, characters, or lines that are not blank.

    Raises:
        BadSetting: another unit, or bounds that nothing meets.
    """
    count = _COUNTS.get(unit)
    if count is None:
        raise BadSetting(f"judge.kwargs.unit is {unit!r}: should be one of {', '.join(_COUNTS)}")
    if at_least < 0 or (at_most is not None and at_most < at_least):
        raise BadSetting(f"judge.kwargs.at_most is {at_most!r}: should be at least at_least = {at_least}")
    sizes = [count(response) for response in responses]
    return [float(at_least <= size and (at_most is None or size <= at_most)) for size in sizes]


_COUNTS = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "lines": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
}


def format_rules(
    prompts: list[str],
    responses: list[str],
    metadata: list[Metadata],
    *,
    starts_with: str | None = None,
    ends_with: str | None = None,
    tags: Sequence[str] = (),
    is_json: bool = False,
    without: Sequence[str] = (),
) -> list[dict[str, float]]:
    """Reward a response that keeps to a format; each demand is a component of its own.

    Args:
        prompts: not looked at.
        responses: what is judged, without white space around.
        metadata: for what the prompt begins the answer with.
        starts_with: what it has to begin with.
        ends_with: what it has to end with.
        tags: names of elements `<name>...</name>` that it has once each, one after the other.
        is_json: whether it has to be a JSON value.
        without: texts that must not be in it.

    Raises:
        BadSetting: nothing is demanded.
    """
    if not (starts_with or ends_with or tags or is_json or without):
        raise BadSetting(
            "judge.kwargs: set what the format demands: starts_with, ends_with, tags, is_json or without"
        )
    values = []
    for response in map(str.strip, whole_answers(responses, metadata)):
        met: dict[str, bool] = {}
        if starts_with:
            met["starts_with"] = response.startswith(starts_with)
        if ends_with:
            met["ends_with"] = response.endswith(ends_with)
        if tags:
            met["tags"] = _has_tags(response, tags)
        if is_json:
            met["is_json"] = _is_json(response)
        if without:
            met["without"] = not any(text in response for text in without)
        values.append(
            {"reward": float(all(met.values())), **{name: float(is_met) for name, is_met in met.items()}}
        )
    return values


def _has_tags(text: str, tags: Sequence[str]) -> bool:
    """Every element once, closed, in this order, and none inside another."""
    marks = [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")]
    places = [text.find(mark) for mark in marks]
    return all(text.count(mark) == 1 for mark in marks) and places == sorted(places)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
