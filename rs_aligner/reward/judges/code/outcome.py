"""What a program gave against what it should have given, and how many of its tests it passed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

_LONGEST_NUMBER = 1000


def same_text(said: str, wanted: str, tolerance: float) -> bool:
    """Whether an output is the one that is expected.

    White space at the ends of lines and of the text does not count. Words are equal if they are the same, or
    the same number to `tolerance`.
    """
    lines, expected = _lines(said), _lines(wanted)
    if lines == expected:
        return True
    return len(lines) == len(expected) and all(
        len(one) == len(other) and all(_same_word(*pair, tolerance) for pair in zip(one, other, strict=True))
        for one, other in ((a.split(), b.split()) for a, b in zip(lines, expected, strict=True))
    )


def same_value(said: Any, wanted: Any, tolerance: float) -> bool:
    """Whether what a function returned is what is expected, where JSON has no tuples and texts as keys.

    Args:
        said: as `plain.encode` gives it. It is not decoded: a program can choose numbers that make a set of
            them slow, and this process judges others, too.
        wanted: as JSON has it.
        tolerance: of numbers.
    """
    if isinstance(said, dict) and len(said) == 1:
        ((kind, held),) = said.items()
        if kind == "d" and isinstance(wanted, Mapping):
            named = {_key(key): value for key, value in held}
            return named.keys() == wanted.keys() and all(
                same_value(value, wanted[key], tolerance) for key, value in named.items()
            )
        said = {"t": lambda: held, "i": lambda: int(held, 16), "f": lambda: float(held)}.get(kind, _Other)()
    if isinstance(said, list) and isinstance(wanted, list):
        return len(said) == len(wanted) and all(
            same_value(one, other, tolerance) for one, other in zip(said, wanted, strict=True)
        )
    if isinstance(said, (int, float)) and isinstance(wanted, (int, float)):
        return said == wanted or _near(said, wanted, tolerance)
    return bool(said == wanted)


class _Other:
    """A value that JSON has no kind for."""


def _key(encoded: Any) -> str:
    """A key of a dict as JSON has it."""
    if isinstance(encoded, (dict, list)):
        raise ValueError("no key that JSON has")
    return encoded if isinstance(encoded, str) else json.dumps(encoded)


def calls_passed(results: bytes, wanted: list[tuple[Any, ...]], tolerance: float) -> int:
    """How many of a function's calls returned what they should.

    Args:
        results: lines `[number, value]`, written by a process that the program shares: anything may be in
            them.
        wanted: of each call, the values that are right.
        tolerance: as `same_value`.
    """
    found: dict[int, bool] = {}
    for line in results.splitlines():
        try:
            number, value = json.loads(line)
            if type(number) is int and number not in found:
                found[number] = any(same_value(value, right, tolerance) for right in wanted[number])
        except (ValueError, TypeError, IndexError, RecursionError, OverflowError, MemoryError):
            continue
    return sum(found.get(number, False) for number in range(len(wanted)))


def assertions_passed(verdict: bytes) -> tuple[int, int]:
    """How many tests went through, of how many, by what the tests' own process wrote down.

    An assertion that was never reached counts only where the tests did not come to their end.

    Raises:
        ValueError: the tests cannot be read.
    """
    lines = [json.loads(line) for line in verdict.splitlines(keepends=True) if line.endswith(b"\n")]
    number, ended, found = 1, False, {}
    for what, said in lines:
        if what == "unreadable":
            raise ValueError(f"the tests cannot be read: {said}")
        if what == "number":
            number = said
        elif what == "end":
            ended = said == ""
        else:
            found[what] = said
    return sum(found.values()), max(1, len(found)) if ended else number


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(one: str, other: str, tolerance: float) -> bool:
    if one == other or max(len(one), len(other)) > _LONGEST_NUMBER:
        return one == other
    try:
        numbers = Decimal(one), Decimal(other)
        return numbers[0] == numbers[1] or _near(float(numbers[0]), float(numbers[1]), tolerance)
    except (InvalidOperation, ValueError):
        return False


def _near(one: float, other: float, tolerance: float) -> bool:
    return tolerance > 0 and abs(one - other) <= tolerance * max(1, abs(other))
