"""What a program gave against what it should have: only what is right counts, and nothing raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.reward.judges.code.extract import code_of_prompt, completed, program_in
from rs_aligner.reward.judges.code.outcome import assertions_passed, calls_passed, same_text, same_value
from rs_aligner.sandbox.plain import encode

pytestmark = pytest.mark.timeout(60)

as_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("said", "wanted", "is_same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1  \n2\n\n\n", "1\n2\n", True),
        ("1 2", "1  2", True),
        ("1\n\n2", "1\n2", False),
        ("\n1", "1", False),
        ("12", "1 2", False),
        ("1.0", "1", True),
        ("1e0", "1", True),
        ("0.1", "0.10000000000000001", False),
        ("nan", "nan", True),
        ("nan", "1", False),
        ("sNaN", "1", False),
        ("Yes", "yes", False),
        ("0" * 2000 + "1", "1", False),
        ("", "", True),
        ("x", "", False),
    ],
)
def test_outputs_are_equal_but_for_white_space_at_ends_and_how_numbers_are_written(
    said: str, wanted: str, is_same: bool
) -> None:
    assert same_text(said, wanted, 0.0) is is_same


def test_tolerance_is_absolute_below_one_and_in_proportion_above() -> None:
    assert same_text("0.0000009", "0", 1e-6)
    assert not same_text("0.0000011", "0", 1e-6)
    assert same_text("1000000.9", "1000000", 1e-6)
    assert not same_text("1e9999", "1", 1e-6)
    assert not same_text("inf", "1", 1e-6)


@given(as_json)
def test_a_value_that_is_right_is_the_same_as_itself(value: Any) -> None:
    assert same_value(encode(value), value, 0.0)


@pytest.mark.parametrize(
    ("said", "wanted", "is_same"),
    [
        ((1, (2, "a")), [1, [2, "a"]], True),
        ({1: "a", None: 2}, {"1": "a", "null": 2}, True),
        ({1: "a"}, {"1": "a", "2": "b"}, False),
        ({1, 2}, [1, 2], False),
        (10**30, 10**30, True),
        (b"a", "a", False),
        (1, "1", False),
        (float("nan"), 1, False),
        ([1], [1, 1], False),
    ],
)
def test_values_are_equal_as_json_can_tell(said: Any, wanted: Any, is_same: bool) -> None:
    assert same_value(encode(said), wanted, 0.0) is is_same


@given(st.binary() | st.lists(as_json).map(lambda lines: "\n".join(map(json.dumps, lines)).encode()))
def test_nothing_that_a_program_writes_raises_or_passes(results: bytes) -> None:
    assert calls_passed(results, [("the secret",), (["another"], "another")], 0.0) == 0


def test_the_first_answer_to_a_call_counts_and_only_once() -> None:
    wanted = [(6,), (10,)]
    assert calls_passed(b"[1, 10]\n[0, 6]\n", wanted, 0.0) == 2
    assert calls_passed(b"[0, 5]\n[0, 6]\n[1, 10]\n[1, 10]\n[-1, 10]\n[true, 10]\n", wanted, 0.0) == 1


def test_assertions_that_were_not_reached_count_where_the_tests_did_not_end() -> None:
    assert assertions_passed(b'["number", 4]\n[0, true]\n[1, false]\n["end", ""]\n') == (1, 2)
    assert assertions_passed(b'["number", 4]\n[0, true]\n[1, false]\n["end", "ProgramEnded"]\n') == (1, 4)
    assert assertions_passed(b'["number", 4]\n[0, true]\n[0, false]\n[1, tr') == (0, 4)
    assert assertions_passed(b'["number", 4]\n["end", ""]\n') == (0, 1)
    assert assertions_passed(b"") == (0, 1)
    with pytest.raises(ValueError, match="the tests cannot be read: why"):
        assertions_passed(b'["unreadable", "why"]\n')


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1\n", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```Python3\n  x = 1\n```\n```text\nno\n```", "  x = 1"),
        ("```\nx\n```\n```c\ny\n```", "y"),
        ("~~~py\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''"),
        ("````python\n```\n````", "```"),
        ("text ```python x``` text", "text ```python x``` text"),
        ("1. Do this:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("```python\n    return x\n```", "    return x"),
        ("```python\n```", ""),
        (" \n", ""),
    ],
)
def test_the_program_is_the_last_block_of_python(response: str, program: str) -> None:
    assert program_in(response) == program


def test_what_a_prompt_has_to_do_with_a_program() -> None:
    prompt = "import math\ndef f(x):\n    '''doc'''\n"
    assert code_of_prompt(prompt) == prompt
    assert code_of_prompt("Write a function.") == ""
    assert code_of_prompt([{"role": "user"}]) == ""
    assert completed("    return x", prompt, "f") == f"{prompt}    return x"
    assert completed("def f(x): return x", prompt, "f") == f"{prompt}\n\ndef f(x): return x"
    assert completed("def ff(x): return x", prompt, "f") == f"{prompt}def ff(x): return x"
    assert completed("def f(x): return x", "", "f") == "def f(x): return x"
