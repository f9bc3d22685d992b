"""The tests of a data row, as HumanEval, MBPP, APPS and LiveCodeBench have them, and plain lists.

What is in them is told by what it looks like, not by its name. Left out on purpose: LiveCodeBench's private
tests, which are compressed pickles: reading a pickle runs code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rs_aligner.reward.judges.base import Metadata
from rs_aligner.reward.judges.code.extract import code_of_prompt

PLACES = ("input_output", "test_list", "test", "tests", "public_test_cases")
"""Where tests are looked for, the first that a row has."""


@dataclass(frozen=True)
class Assertions:
    """Tests that are code.

    Attributes:
        setup: code that comes before them.
        prompt: the code that the row's prompt is, or "".
        entry: the function that is asked for, or "".
        cases: a code for each test, or None.
        code: otherwise one for all, whose assertions are the tests.
    """

    setup: str
    prompt: str
    entry: str
    cases: tuple[str, ...] | None
    code: str = ""


@dataclass(frozen=True)
class Pairs:
    """Tests that are inputs and outputs.

    Attributes:
        function: that is called with each input's arguments; "" for standard input and output.
        pairs: input and output of each: texts, or a list of arguments and the values that would be right.
    """

    function: str
    pairs: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class Keys:
    """What a row calls things.

    Attributes:
        tests: the tests, dotted where they lie deeper; None to look in `PLACES`.
        setup: code that comes before the tests.
        entry: the function that HumanEval's tests are called with.
        function: the function that inputs are arguments of.
        prompt: what the program may be the continuation of.
    """

    tests: str | None = None
    setup: str = "test_setup_code"
    entry: str = "entry_point"
    function: str = "fn_name"
    prompt: str = "prompt"


def read_tests(row: Metadata, keys: Keys) -> Assertions | Pairs:
    """The tests of a row.

    Raises:
        ValueError: it has none that can be read; the message names the key.
    """
    name, found = _looked_up(row, keys)
    if isinstance(found, str):
        found = _unpacked(found)
    function = str(row.get(keys.function) or _function_of(found, row) or "")
    if isinstance(found, Mapping) and {"inputs", "outputs"} <= set(found):
        inputs, outputs = found["inputs"], found["outputs"]
        if not (_is_list(inputs) and _is_list(outputs) and len(inputs) == len(outputs) > 0):
            raise ValueError(f"{name} should have as many outputs as inputs, and at least one")
        return _pairs(name, function, zip(inputs, outputs, strict=True))
    if _is_list(found) and found:
        if all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in found):
            return _pairs(name, function, ((test["input"], test["output"]) for test in found))
        if all(isinstance(test, str) for test in found):
            return _assertions(row, keys, tuple(found), "")
    if isinstance(found, str) and found.strip():
        return _assertions(row, keys, None, found)
    raise ValueError(
        f"{name} is {_shown(found)}; it should be code, a list of codes, a list of objects with input "
        "and output, or an object with inputs and outputs"
    )


def _looked_up(row: Metadata, keys: Keys) -> tuple[str, Any]:
    if keys.tests is None:
        for name in PLACES:
            if row.get(name):
                return name, row[name]
        raise ValueError(
            f"it has no tests: none of {', '.join(PLACES)}; name their key with judge.kwargs.keys.tests"
        )
    found: Any = row
    for part in [keys.tests] if keys.tests in row else keys.tests.split("."):
        if isinstance(found, str):
            found = _unpacked(found)
        found = found.get(part) if isinstance(found, Mapping) else None
    if not found:
        raise ValueError(
            f"it has no {keys.tests} (judge.kwargs.keys.tests); its keys are {', '.join(map(str, row))}"
        )
    return keys.tests, found


def _unpacked(text: str) -> Any:
    """What a text has as JSON, if that is a list or an object; else the text."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text


def _function_of(found: Any, row: Metadata) -> Any:
    """The function's name where APPS and LiveCodeBench have it."""
    if isinstance(found, Mapping):
        return found.get("fn_name")
    kinds = (
        {test.get("testtype") for test in found if isinstance(test, Mapping)} if _is_list(found) else set()
    )
    inner = row.get("metadata")
    inner = _unpacked(inner) if isinstance(inner, str) else inner
    if kinds == {"functional"}:
        name = inner.get("func_name") if isinstance(inner, Mapping) else None
        if not name:
            raise ValueError("its tests call a function, and nothing names it (judge.kwargs.keys.function)")
        return name
    return None


def _pairs(name: str, function: str, pairs: Any) -> Pairs:
    read = (lambda given, wanted: (_arguments(name, given), _values(wanted))) if function else _texts
    return Pairs(function, tuple(read(given, wanted) for given, wanted in pairs))


def _texts(given: Any, wanted: Any) -> tuple[str, str]:
    one, other = ("\n".join(map(str, text)) if _is_list(text) else str(text) for text in (given, wanted))
    return one, other


def _arguments(name: str, given: Any) -> list[Any]:
    """APPS has a list of them, LiveCodeBench a text with a line of JSON for each."""
    if isinstance(given, str):
        try:
            return [json.loads(line) for line in given.split("\n") if line.strip()]
        except (ValueError, RecursionError):
            raise ValueError(f"{name}: the arguments {_shown(given)} are not JSON, a line for each") from None
    return list(given) if _is_list(given) else [given]


def _values(wanted: Any) -> tuple[Any, ...]:
    """What may be returned. APPS has the value in a list of one, or not."""
    if isinstance(wanted, str):
        try:
            return (wanted, json.loads(wanted))
        except (ValueError, RecursionError):
            return (wanted,)
    return (wanted, wanted[0]) if _is_list(wanted) and len(wanted) == 1 else (wanted,)


def _assertions(row: Metadata, keys: Keys, cases: tuple[str, ...] | None, code: str) -> Assertions:
    imports = row.get("test_imports")
    setup = [*(imports or ()), row.get(keys.setup) or ""]
    entry = str(row.get(keys.entry) or "")
    prompt = code_of_prompt(row.get(keys.prompt)) if entry else ""
    return Assertions("\n".join(map(str, setup)), prompt, entry, cases, code)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
