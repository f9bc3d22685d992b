"""Tests in the shapes that people have them: right, half right and wrong answers have their share."""

# ruff: noqa: E501  # programs read best as they are

from __future__ import annotations

import json
from typing import Any

import pytest

from rs_aligner.reward.judges.code import CodeJudge
from rs_aligner.reward.judges.code.row import Keys, Pairs, read_tests
from rs_aligner.rollout import ScoreFailure
from tests.reward.judges.code.conftest import Make

pytestmark = pytest.mark.timeout(120)

PROMPT = (
    'import math\n\ndef half(x):\n    return x / 2\n\ndef area(r: float) -> float:\n    """Of a circle."""\n'
)
CHECK = """
METADATA = {}

def check(candidate):
    assert candidate(0) == 0
    assert math.isclose(candidate(1), 3.14159265, rel_tol=1e-6), "one"
    assert half(4) == 2
    for r in range(3):
        assert candidate(r) >= 0
    try:
        candidate("no number")
        assert False
    except TypeError:
        pass
"""
HUMAN_EVAL = {"prompt": PROMPT, "entry_point": "area", "test": CHECK}
SORTED = {
    "test_list": [
        "assert order([2, 1]) == [1, 2]",
        "assert order([]) == []",
        "assert order('ba') == ['a', 'b']",
    ]
}
ADD = {"inputs": ["1 2\n", "3 4\n", "5 6\n"], "outputs": ["3\n", "7", "11\n"]}
ADDS = "a, b = map(int, input().split())\nprint(a + b)"
PAIR = {"fn_name": "pair", "inputs": [[1, "a"], [2, "b"]], "outputs": [[[1, "a"]], [[2, "b"]]]}
LIVE = {
    "public_test_cases": json.dumps([{"input": "[3, 1]\n2", "output": "[6, 2]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "scale"}),
}
TWICE = {
    "public_test_cases": json.dumps(
        [{"input": '"a\u2028b"\n2', "output": '"a\u2028ba\u2028b"', "testtype": "functional"}]
    ),
    "metadata": json.dumps({"func_name": "twice"}),
}
KOD = "from solution import order\n\ndef test_two():\n    assert order([2, 1]) == [1, 2]\n\ndef test_none():\n    assert order([]) == []\n"

UNIT = """
import unittest

class TestOrder(unittest.TestCase):
    def setUp(self):
        self.given = [2, 1]

    def test_two(self):
        self.assertEqual(order(self.given), [1, 2])

    def test_none(self):
        self.assertEqual(order([]), [])

    def test_error(self):
        with self.assertRaises(TypeError):
            order(1)

    @unittest.skip("not here")
    def test_left_out(self): ...
"""

ROWS: list[tuple[str, str, dict[str, Any], float]] = [
    ("a prompt continued", "    return math.pi * r * r\n", HUMAN_EVAL, 1.0),
    ("a prompt's function anew", "```python\ndef area(r):\n    return math.pi * half(2 * r) * r\n```", HUMAN_EVAL, 1.0),
    ("a prompt continued wrongly", "    return 3 * r * r\n", HUMAN_EVAL, 3 / 4),
    ("a prompt's helper is the prompt's", "```python\ndef half(x): return 2\ndef area(r): return -1\n```", HUMAN_EVAL, 1 / 5),
    ("a list of assertions", "Sure!\n```python\ndef order(x):\n    return sorted(x)\n```\nDone.", SORTED, 1.0),
    ("two of three", "```py\ndef order(x):\n    x.sort()\n    return x\n```", SORTED, 2 / 3),
    ("the last block counts", "```python\nx\n```\n```python\ndef order(x): return sorted(x)\n```\n```\nnot this\n```", SORTED, 1.0),
    ("a block that is not closed", "```python\ndef order(x): return sorted(x)", SORTED, 1.0),
    ("input and output", ADDS, {"input_output": json.dumps(ADD)}, 1.0),
    ("an object of them", ADDS.replace("+", "-"), {"tests": ADD}, 0.0),
    ("a list of them", ADDS, {"tests": [{"input": "1 1", "output": "2"}, {"input": "1 1", "output": "3"}]}, 0.5),
    ("a main block", f"if __name__ == '__main__':\n    {ADDS.replace(chr(10), chr(10) + '    ')}", {"input_output": ADD}, 1.0),
    ("lines and spaces", "print('1.0   2 ')\nprint()", {"tests": {"inputs": [""], "outputs": ["1 2\n"]}}, 1.0),
    ("a function's values", "def pair(n, c):\n    return n, c", {"input_output": PAIR}, 1.0),
    ("a method's values", "class Solution:\n    def pair(self, n, c):\n        return [n, 'a']", {"input_output": PAIR}, 0.5),
    ("LiveCodeBench's", "def scale(x, n): return [n * i for i in x]", LIVE, 1.0),
    ("LiveCodeBench's, with what ends a line elsewhere", "def twice(x, n): return x * n", TWICE, 1.0),
    ("functions that are tests", "def order(x): return sorted(x) or None", {"test": KOD}, 0.5),
    ("unittest", "def order(x): return sorted(x) or None", {"test": UNIT}, 2 / 4),
    ("objects", "class Stack:\n    def __init__(self): self.held = []\n    def push(self, x): self.held.append(x)\n    def pop(self): return self.held.pop()\n    def __str__(self): return str(self.held)",
     {"test_list": ["s = Stack()\ns.push(1)\ns.push(2)\nassert str(s) == '[1, 2]'", "assert s.pop() == 2", "assert s.held == [1]"]}, 1.0),
    ("objects that tests make", "class Node:\n    def __init__(self, v): self.v, self.next = v, None\ndef size(n):\n    return 0 if n is None else 1 + size(n.next)",
     {"test_setup_code": "one = Node(1)\none.next = Node(2)", "test_list": ["assert size(one) == 2", "assert one.next.v == 2"]}, 1.0),
    ("what is changed in place", "def order(x): x.sort()\ndef fill(d): d['a'] = [1]\ndef deep(x): x[0][0] = 9",
     {"test_list": ["x = [2, 1]\norder(x)\nassert x == [1, 2]", "d = {}\nfill(d)\nassert d == {'a': [1]}", "row = [0]\ny = [row]\ndeep(y)\nassert row == [9]"]}, 1.0),
    ("functions as arguments", "def apply(f, x): return [f(i) for i in x]\ndef twice(f): return lambda x: f(f(x))",
     {"test_list": ["assert apply(lambda i: i + 1, [1, 2]) == [2, 3]", "assert twice(lambda i: 3 * i)(2) == 18"]}, 1.0),
    ("errors", "class Mine(KeyError): pass\ndef raises(x): raise Mine('no')",
     {"test_list": ["try:\n    raises(1)\n    assert False\nexcept LookupError as error:\n    assert 'no' in str(error)"]}, 1.0),
    ("iterators", "def odd(n):\n    for i in range(n):\n        if i % 2: yield i", {"test_list": ["assert list(odd(6)) == [1, 3, 5]", "assert sum(odd(4)) == 4"]}, 1.0),
    ("every kind of value", "def same(x): return x", {"test_list": [
        f"assert same({value}) == {value}" for value in
        ("None", "True", "10 ** 40", "-0.5", "'ä\\ud800'", "b'\\x00'", "(1, [2, {3: {4, 5}}])", "frozenset({1})", "1j", "range(3)", "float('inf')", "bytearray(b'x')")]
        + ["assert type(same((1,))) is tuple", "assert same(float('nan')) != 0"]}, 1.0),
    ("modules that nobody imported", "def root(x): return x ** 0.5", {"test_list": ["assert math.isclose(root(4), 2)"]}, 1.0),
    ("a nested place", ADDS, {"reward_model": {"ground_truth": json.dumps(ADD)}}, 1.0),
]  # fmt: skip  # a case a line


@pytest.mark.parametrize(
    ("response", "row", "share"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_response_has_the_share_of_the_tests_that_it_passes(
    judge: CodeJudge, make: Make, response: str, row: dict[str, Any], share: float
) -> None:
    if "reward_model" in row:
        judge = make(keys={"tests": "reward_model.ground_truth"}, time_limit=10.0)
    (score,) = judge.score_texts(["p"], [response], [row])
    assert isinstance(score, dict), score
    assert score == {
        "reward": share,
        "passed": float(share == 1.0),
        "tests": share,
        "timed_out": 0.0,
        "has_program": 1.0,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a.jsonl:3"}, "row a.jsonl:3: it has no tests: none of input_output, test_list"),
        ({"test": "assert ("}, "the tests cannot be read: '(' was never closed"),
        ({"test": "x = 1"}, "the tests cannot be read: there is no assertion"),
        (
            {"test": "import no_such_module\nassert x == 1"},
            "No module named 'no_such_module'; judge.kwargs.python",
        ),
        ({"test_list": ["import no_such_module"]}, "No module named 'no_such_module'; judge.kwargs.python"),
        ({"tests": 5}, "tests is 5; it should be code, a list of codes"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "as many outputs as inputs"),
        ({"tests": [{"input": "x", "output": "1"}], "fn_name": "f"}, "the arguments 'x' are not JSON"),
        ({"tests": [{"input": "1", "output": "1", "testtype": "functional"}]}, "judge.kwargs.keys.function"),
    ],
)
def test_tests_that_cannot_be_read_are_no_score_and_named(
    judge: CodeJudge, row: dict[str, Any], reason: str
) -> None:
    (failure,) = judge.score_texts([""], ["x = 1"], [row])
    assert isinstance(failure, ScoreFailure)
    assert reason in failure.reason


def test_a_named_key_that_a_row_lacks_is_named_with_those_it_has(make: Make) -> None:
    (failure,) = make(keys={"tests": "checks.all"}).score_texts(
        [""], ["x = 1"], [{"id": 1, "checks": {"some": "x"}}]
    )
    assert isinstance(failure, ScoreFailure)
    assert "it has no checks.all (judge.kwargs.keys.tests); its keys are id, checks" in failure.reason


def test_an_apps_value_may_be_in_a_list_of_one_or_not() -> None:
    suite = read_tests({"input_output": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], 4]}}, Keys())
    assert suite == Pairs("f", (([1], ([3], 3)), ([2], (4,))))


def test_numbers_of_an_output_may_differ_as_far_as_is_said(judge: CodeJudge, make: Make) -> None:
    row = {"tests": {"inputs": [""], "outputs": ["0.3333333"]}}
    near = make(tolerance=1e-6, time_limit=10.0)
    scores = [one.score_texts([""], ["print(1 / 3)"], [row])[0] for one in (judge, near)]
    assert [score["reward"] for score in scores if isinstance(score, dict)] == [0.0, 1.0]


def test_all_or_nothing(make: Make) -> None:
    (score,) = make(score="all", time_limit=10.0).score_texts([""], ["def order(x): return []"], [SORTED])
    assert isinstance(score, dict)
    assert (score["reward"], score["tests"], score["passed"]) == (0.0, 1 / 3, 0.0)
