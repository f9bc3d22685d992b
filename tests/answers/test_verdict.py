"""Where an answer is looked for, what repeats the prompt, and what answers are called in a vote."""

from __future__ import annotations

import pytest

from rs_aligner.answers import (
    Undecided,
    final_answer,
    final_answers,
    is_right,
    kind_of,
    library,
    marked_answer,
)


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("So it is $x+1$.", "1+x"),
        ("The answer is x+1", "1+x"),
        ("The answer to the first question is: **x+1**.", "1+x"),
        ("The answer is: **x+1**", "1+x"),
        ("**Answer:** x+1", "1+x"),
        ("The solution is $x+1$, as was to be shown", "text"),
        ("We find\nx+1", "1+x"),
        ("We find\n\nx+1\n\n", "1+x"),
        ("Paris\nIt is in France.", "Paris"),
        ("\n  Paris \nIt is in France.", "paris"),
        ("a" * 990 + "\nx+1", "1+x"),
        (r"\[ x+1 \]", "1+x"),
        (r"we get \( x+1 \)", "1+x"),
        ("we get $$x+1$$", "1+x"),
        (r"\boxed{10^4}", "10000"),
        (r"\boxed{\frac{20}{2}}", "10"),
        ("\\boxed{10\u2074}", "10000"),
        ("$10^4$", "10000"),
        (r"x=\boxed{5}", "x=5"),
        (r"\boxed{x=5}", "x=5"),
        (r"\boxed{n=5}", "5"),
        (r"\boxed{5}", "x=5"),
    ],
)
def test_the_answer_of_a_text_is_at_its_end_or_its_first_line(response: str, reference: str) -> None:
    assert is_right(response, reference) == (reference != "text")


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        (r"\boxed{x=5}", "y=5"),
        (r"\boxed{1+4}", "5"),
        ("x+1\nis what we started from, and it is wrong", "1+x+1"),
        ("We find x+1 in the middle\nof words", "1+x"),
        ("It is x+1. The answer is x+2", "1+x"),
        ("The answer is x+1\nno, x+2", "1+x"),
        ("Rome\nParis", "Paris"),
    ],
)
def test_nor_is_what_stands_elsewhere(response: str, reference: str) -> None:
    assert not is_right(response, reference)


@pytest.mark.parametrize(
    ("answer", "reference", "prompt", "is_copied"),
    [
        ("x+1", "1+x", "Turn $x + 1$ around.", True),
        (r"\dfrac{x^2-1}{x-1}", "x+1", r"Simplify $\frac{x^{2} - 1}{x-1}$.", True),
        (r"\left(x+1\right)^2", "x^2+2x+1", "Expand $(x+1)^2$", True),
        ("x!", "x!", "What is $x!$?", False),  # the reference's own words
        ("-x", "0-x", "Is it $-x$?", False),  # too short to tell
        ("x^2+2x+1", "(x+1)^2", "Is $(x+1)^2$ the same as $x^2+2x+1$?", False),  # both were offered
        ("x+2", "2+x", "Add 2 to $x$.", False),
        ("2x", "x2", "Is it 2x?", False),  # no formula that anyone would have to work on
    ],
)
def test_what_repeats_the_prompt(answer: str, reference: str, prompt: str, is_copied: bool) -> None:
    assert is_right(rf"\boxed{{{answer}}}", reference) == (reference != "x2")
    assert is_right(rf"\boxed{{{answer}}}", reference, prompt) == (reference != "x2" and not is_copied)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("so 1,234.50 dollars", "2469/2"),
        ("50%", "1/2"),
        (r"\boxed{50\%}", "1/2"),
        ("#### -7", "-7"),
        (r"\boxed{\frac{20}{2}}", "10"),
        (r"\boxed{}", ""),
        ("\\boxed{\\text{New  York}}", "new york"),
        ("  'So it is.'\nmore", "so it is"),
        ("The answer is Paris.", "paris"),
        ("", ""),
    ],
)
def test_the_name_of_an_answer_in_a_vote(text: str, name: str) -> None:
    assert final_answer(text) == name


def test_answers_are_shown_as_the_first_of_those_that_are_the_same_writes_them() -> None:
    texts = [
        r"\boxed{ x  + 1 }",
        "$1+x$",
        "#### 18.0",
        "so 18",
        r"\boxed{-\frac12}",
        "The answer is  New York.",
        "",
    ]
    assert final_answers(texts) == ["x + 1", "x + 1", "18", "18", "-1/2", "New York", ""]


def test_a_reference_may_be_a_solution_with_a_marked_answer() -> None:
    assert is_right("18", r"We add and get \boxed{18}.")
    assert is_right(r"\boxed{x+1}", "so\n#### 1+x")
    assert kind_of(r"so \boxed{\{1,2\}}") == "set"
    assert kind_of("18 eggs") == "number"


def test_the_process_has_one_library() -> None:
    assert library.shared() is library.shared()


def test_the_library_remembers_the_newest_pairs_and_is_asked_again_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    def answer(self: library.Library, pair: tuple[str, str]) -> bool | str:
        asked.append(pair)
        return {"x": True, "y": False}.get(pair[0], "too long")

    monkeypatch.setattr(library, "_MANY", 3)
    monkeypatch.setattr(library.Library, "_ask", answer)
    judge = library.Library()
    for _ in range(2):
        assert judge.same("x", "1")
        assert not judge.same("y", "1")
        with pytest.raises(Undecided, match="too long"):
            judge.same("z", "1")
    assert asked == [("x", "1"), ("y", "1"), ("z", "1")]
    assert judge.same("x", "2")  # and the oldest is forgotten
    assert not judge.same("y", "1")
    assert len(asked) == judge.calls == 4
    assert judge.same("x", "1")
    assert len(asked) == judge.calls == 5


def test_a_library_that_was_closed_decides_nothing() -> None:
    judge = library.Library()
    judge.close()
    with pytest.raises(Undecided, match="the judge was closed"):
        judge.same("1", "2")


@pytest.mark.parametrize(
    ("text", "answer", "where", "is_formula"),
    [
        (r"\boxed{7}", "7", "box", True),
        (r"\fbox{7}", "7", "box", True),
        ("#### 7", " 7", "mark", False),
        (r"\boxed{7} \boxed{8}", "8", "box", True),
        (r"\boxed{7} \quad \boxed{8}", "7, 8", "box", True),
        (r"\boxed{7}, " * 8 + r"\boxed{7}", ", ".join("7" * 9), "box", True),
        (r"\boxed{6}, " + r"\boxed{7}, " * 8 + r"\boxed{7}", ", ".join("7" * 9), "box", True),
        (r"\boxed{7}" + "," + " " * 59 + r"\boxed{8}", "7, 8", "box", True),
        (r"\boxed{7}" + "," + " " * 60 + r"\boxed{8}", "8", "box", True),
        ("\\boxed{7},\n\n\\boxed{8}", "8", "box", True),
        (r"\boxed{7}. Or is it \boxed{8}", "8", "box", True),
        (r"\boxed{7}\text{ or }\boxed{8}", r"7 \text{ or } 8", "box", True),
        (r"\boxed 12", "12", "box", True),
        (r"\boxed x", "x", "box", True),
        (r"\boxed -3.5.", "-3.5", "box", True),
        (r"\boxed ?", "", "box", True),
        (r"\boxed\boxed", "", "box", True),
        (r"- \boxed{7}", "-7", "box", True),
        (r"$-$ \boxed{7}", "-7", "box", True),
        (r"5 - \boxed{7}", "7", "box", True),
        (r"x) - \boxed{7}", "7", "box", True),
        (r"\boxed{7} \%", "7%", "box", True),
        (r"\boxed{7}%", "7%", "box", True),
        (r"\boxed{7}x", "", "box", True),
        (r"\boxed{7} + 1", "", "box", True),
        (r"\boxed{7} \cdot x", "", "box", True),
        (r"\boxed{7} or so", "7", "box", True),
        (r"\boxed{7} or more", "7", "box", True),
        (r"\boxed{7}, maybe 8", "", "box", True),
        (r"\boxed{7}, alternatively 8", "", "box", True),
        (r"\boxed{a\}b}", r"a\}b", "box", True),
        ("7\\boxed{7}", "", "box", True),
    ],
)
def test_what_is_marked(text: str, answer: str, where: str, is_formula: bool) -> None:
    said = marked_answer(text)
    assert said is not None
    assert (said.text, said.where, said.is_formula) == (answer, where, is_formula)


@pytest.mark.parametrize("text", ["7", "", "### 7", "\\box{7}", "#### Step\nmore"])
def test_what_is_not_marked(text: str) -> None:
    assert marked_answer(text) is None
