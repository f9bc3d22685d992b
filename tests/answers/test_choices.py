"""Multiple choice: which option a text comes to, and what is no choice."""

from __future__ import annotations

from typing import Any

import pytest

from rs_aligner.answers.choices import Options, chosen, expected, options_of
from rs_aligner.reward.judges.verifiers import choice

CITIES = ["London", "Rome", "Paris", "Berlin"]
PARIS = [
    "C",
    "(C)",
    "c",
    "(c)",
    "C.",
    "C. Paris",
    "(C) Paris",
    "Paris",
    "The answer is C",
    "The answer is (C).",
    "The answer is C. Paris.",
    "Answer: C",
    "**Answer: C**",
    "Final answer: **C**",
    r"\boxed{C}",
    r"\boxed{\text{(C)}}",
    r"\boxed{\text{C. Paris}}",
    r"\boxed{Paris}",
    "#### C",
    "It is in France.\nThe answer is C.",
    "The correct answer is option C: Paris",
    "I choose C",
    "A is wrong. B is wrong.\n\nC",
    "The answer is C, because Paris is the capital of France.",
]
NOT_PARIS = [
    "",
    "D",
    "A or C",
    "The answer is C or D",
    "Either A or C.",
    r"\boxed{C, D}",
    r"\boxed{}",
    r"\boxed{C",
    "C and D",
    "(C) London",
    "Not C",
    "The answer is not C",
    "ABCD",
    "Choose between A and C",
    "The answer is a city",
    r"\boxed{A} or \boxed{C}",
    r"\boxed{C} or D",
    "All of A, B, C, D",
    "C/D",
    "Cat",
    "Paris or Rome",
    "neither C",
    "E",
]


@pytest.mark.parametrize("response", PARIS)
def test_an_option_by_its_letter_or_its_text(response: str) -> None:
    assert chosen(response, options_of(CITIES)) == "C"


@pytest.mark.parametrize("response", NOT_PARIS)
def test_what_hedges_or_says_something_else_is_not_the_option(response: str) -> None:
    assert chosen(response, options_of(CITIES)) != "C"


@pytest.mark.parametrize("reference", [2, "C", "(C)", "c", "Paris", "C. Paris", "2", "#### C", r"\boxed{C}"])
def test_a_reference_is_a_letter_a_number_or_a_text(reference: Any) -> None:
    assert expected(reference, options_of(CITIES)) == "C"


def test_options_have_the_row_s_labels() -> None:
    arc = options_of({"text": ["iron", "air"], "label": ["1", "2"]})
    assert expected("2", arc) == "2"
    assert chosen("The answer is (2).", arc) == chosen(r"\boxed{air}", arc) == "2"
    assert options_of({"A": "iron", "B": "air"}) == Options(("A", "B"), ("iron", "air"))
    numbers = options_of(["3", "4", "5"])
    assert expected("4", numbers) == chosen(r"\boxed{4}", numbers) == "B"  # an option's text before its place
    assert expected(3, options_of(CITIES), first_index=1) == "C"
    assert chosen("(B)", options_of(None)) == expected("B", options_of(None)) == "B"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "q1", "answer": 4, "choices": CITIES}, "row q1: 4 counts no option: there are 4"),
        (
            {"id": "q1", "answer": "Madrid", "choices": CITIES},
            "row q1: 'Madrid' names none of the options A, B, C, D",
        ),
        ({"id": "q1", "answer": "A", "choices": "London"}, "row q1: choices should be a list of texts"),
        ({"id": "q1", "choices": CITIES}, "row q1.* has no 'answer' to compare with"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        choice([""], ["C"], [row])


def test_there_may_be_as_many_options_as_letters() -> None:
    texts = [f"text {n}" for n in range(26)]
    assert chosen("Z", options_of(texts)) == chosen(r"\boxed{text 25}", options_of(texts)) == "Z"
    assert options_of(None).labels == tuple("ABCDEFGHIJ")
    for wrong in ([*texts, "one more"], [], {}, {"text": ["a", "b"], "label": ["A"]}):
        with pytest.raises(ValueError, match="choices should be 1 to 26 texts, each with one label"):
            options_of(wrong)


@pytest.mark.parametrize("index", [-1, 0, 5, 6])
def test_a_number_that_counts_no_option_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"{index} counts no option: there are 4, from 1 on"):
        expected(index, options_of(CITIES), first_index=1)
    assert [expected(n, options_of(CITIES), first_index=1) for n in (1, 4)] == ["A", "D"]


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("A\nsince it is so.\nC", "C"),  # a letter alone at the end is the last word
        ("A: London\nParis", None),
        ("Paris\nC", "C"),
        ("Paris\nso, as I said: C. Paris", None),
        ("Let us see.\nParis", "C"),
        ("C\n\n", "C"),
        ("I'd go with Paris", "C"),
        ("We pick B\nand no other", "B"),
        ("option A? No, the answer is B", "B"),
        ("a city", None),
        ("(a) city", "A"),
        ("C, since A is in England", "C"),
        ("C. It is not A", None),
        ("C) A", None),
        ("C (B)", None),
        ("C Paris", "C"),
        ("C. London", None),  # of the other options some come before, some behind
        ("A. Paris", None),
        ("C+", None),
        ("[C]: Paris!", "C"),
        ("'Paris'", "C"),
        (r"\boxed{\mathrm{C}}", "C"),
        (r"\boxed{\textbf{(C)}\ Paris}", "C"),
        ("x" * 400 + "\nThe answer is B", "B"),
    ],
)
def test_which_letter_is_the_last_word(response: str, label: str | None) -> None:
    assert chosen(response, options_of(CITIES)) == label


def test_a_text_that_two_options_have_names_neither() -> None:
    options = options_of(["so", "so", "no"])
    assert chosen("so", options) is None
    assert chosen("no", options) == "C"
    assert options_of({" a ": 1, "b": 2}) == Options(("A", "B"), ("1", "2"))
    with pytest.raises(ValueError, match="True"):
        expected(True, options)


def test_the_judge() -> None:
    rows = [{"answer": 2, "choices": CITIES}, {"label": "B", "options": {"A": "x", "B": "y"}}]
    assert choice(["", ""], ["The answer is C.", "D"], [rows[0]] * 2) == [1.0, 0.0]
    assert choice([""], [r"\boxed{y}"], [rows[1]], answer_key="label", choices_key="options") == [1.0]
