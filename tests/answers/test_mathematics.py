"""Answers that are no numbers: what is the same and what is not, by the collection, by hand, by a grammar."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.answers import Undecided, final_answer, final_answers, is_right, kind_of, library
from rs_aligner.answers.forms import same
from rs_aligner.answers.reading import read
from tests.answers.grammar import KINDS, drawn
from tests.answers.pairs import pairs

pytestmark = pytest.mark.timeout(150)  # the first pair for math-verify starts its process


def accepted(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in found if is_right(*pair)]


def refused(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in found if not is_right(*pair)]


def test_every_right_pair_of_the_collection_is_accepted_and_no_wrong_one() -> None:
    assert refused(pairs("answers_right")) == []
    assert accepted(pairs("answers_wrong")) == []


def test_pairs_written_by_hand_before_the_readers_were() -> None:
    right, wrong = pairs("hand_right"), pairs("hand_wrong")
    assert len(right) == 100
    assert len(wrong) >= 100
    assert len(refused(right)) <= 3, refused(right)
    assert len(accepted(wrong)) <= 1, accepted(wrong)


def test_pairs_of_a_grammar() -> None:
    right, wrong = drawn(300, right=True), drawn(300, right=False)
    assert len({reference for _, reference in right + wrong}) > 300
    assert len(KINDS) >= 20
    assert len(refused(right)) <= 9, refused(right)
    assert len(accepted(wrong)) <= 3, accepted(wrong)


SAME = [
    (r"\frac{x^2-1}{x-1}", "x+1"),
    (r"\ln 8", r"3\ln 2"),
    (r"\sin^2 x+\cos^2 x+x", "1+x"),
    ("3<x<5", "(3,5)"),
    ("x>3", r"(3,\infty)"),
    ("2x > 6", "x>3"),
    (r"x<3 \text{ or } x>5", r"(-\infty,3)\cup(5,\infty)"),
    ("x=3", "3"),
    ("f(x)=x^2", "x^2"),
    ("x-y=1", "y=x-1"),
    ("x = y", "y = x"),
    (r"5\sqrt{2} \approx 7.07", r"5\sqrt{2}"),
    (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
    (r"100\pi\text{ cm}^2", r"100\pi"),
    (r"\emptyset", r"\emptyset"),
    (r"\int_0^1 f(x)dx", r"\int_0^1 f(x)\,dx"),
    (r"x \equiv 3 \pmod{7}", r"x\equiv3\pmod{7}"),
    ("2 : 3", "2:3"),
    (r"1, 2, \text{and } 3", "1,2,3"),
    (r"(1,2) \text{ and } (3,4)", "(3,4),(1,2)"),
    (r"x=3\text{ and }y=4", "x=3,y=4"),
    (r"-\frac{1}{2}", r"\frac{1}{-2}"),
    ("\u03b8", r"\theta"),
    ("x \u2265 3", r"x \ge 3"),
    ("\u221a2", r"\sqrt{2}"),
    ("x\u00b2", "x^2"),
    (r"\tan^{-1}(2)", r"\arctan 2"),
    (r"\left(\begin{array}{c}1\\2\end{array}\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"1.5 \times 10^{3}", "1500"),
    ("120", "5!"),
    (r"\textbf{(C)}", "C"),
]
DIFFERENT = [
    ("(2,3)", "2,3"),
    ("[2,3]", "(2,3)"),
    (r"\{2,3\}", "(2,3)"),
    ("x=2,y=3", "2"),
    (r"x<3 \text{ or } x>5", r"x<3 \text{ and } x>5"),
    ("n", "N"),
    ("no", "on"),
    ("1/2x", r"\frac{1}{2x}"),
    ("0.33", r"\frac{1}{3}"),
    ("3.14159265358979", r"\pi"),
    ("1.41421356237", r"\sqrt{2}"),
    ("0.6931471805599453", r"\ln 2"),
    (r"\sqrt{16}", "4"),
    (r"\binom{10}{3}", "120"),
    (r"\log_2 8", "3"),
    ("|-3|", "3"),
    ("16-3", "13"),
    ("1^2", "1"),
    (r"2\cdot 8", "16"),
    ("16", r"2^3 \cdot 2"),
    ("5!", "120"),
    (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\sin^2 x", r"\sin x^2"),
    (r"\sin 2x", r"2\sin x"),
    ("x+1.0000001", "x+1"),
    (r"2^{127}x", "x"),
    ("170141183460469231731687303715884105728x", "x"),
    ("9^{9^{9^9}}", "9"),
    (r"\frac{1}{0}", "0"),
    (r"\infty", r"-\infty"),
    ("x=5", "y=5"),
    ("y=x^2", "x=y^2"),
    ("2:3", r"\frac{2}{3}"),
    ("1,2,3,4,5,6", "3"),
    (r"\text{yes}", r"\text{yes and no}"),
    ("C, D", "C"),
    ("C", "C, D"),
    ("2^{3x}", "2^{3}x"),
    (r"\sqrt{x}+1", r"\sqrt{x+1}"),
    ("-2^2", "4"),
    ("x_1", "x_2"),
    (r"1.\overline{3}", "1.3"),
    (r"12 \text{ cm}^2", r"12 \text{ cm}^3"),
    ("(1,2),(3,4)", "(1,2,3,4)"),
    ("-x>3", "x>-3"),
    ("x^2=9", "x=3"),
    (r"x=\pm 3", "x=3"),
    (r"10\text{ or more}", "10"),
    (r"\pi\approx 3.14", "3.15"),
    (r"5\sqrt{2} \approx 9", r"5\sqrt{2}"),
    ("60,60", "60"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_what_is_said_in_other_signs_is_the_same(answer: str, reference: str) -> None:
    assert is_right(rf"\boxed{{{answer}}}", reference)


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_what_is_like_it_is_not_the_same(answer: str, reference: str) -> None:
    assert not is_right(rf"\boxed{{{answer}}}", reference)


@pytest.mark.parametrize(
    ("answer", "reference", "prompt"),
    [
        ("x^2-x-6", "(x-3)(x+2)", "Factor $x^2 - x - 6$."),
        ("(x+2)(x+3)", "x^2+5x+6", r"Expand $\left(x + 2\right)(x + 3)$."),
        ("2^{10}", "1024", "Compute $2^{10}$."),
    ],
)
def test_a_formula_of_the_prompt_is_no_answer_to_it(answer: str, reference: str, prompt: str) -> None:
    assert is_right(rf"\boxed{{{answer}}}", reference)
    assert not is_right(rf"\boxed{{{answer}}}", reference, prompt)
    assert is_right(rf"\boxed{{{reference}}}", reference, prompt)


def test_few_pairs_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("math-verify was asked")

    monkeypatch.setattr(library.Library, "same", never)
    everything = drawn(300, right=True) + drawn(300, right=False)
    assert accepted(everything)  # whatever they say, nobody was asked


def test_only_what_is_left_goes_to_the_library() -> None:
    asked = library.Library()
    try:
        assert is_right(r"\boxed{\cos 2x}", r"1 - 2\sin^2 x", judge=asked)
        assert is_right(r"\boxed{\cos 2x}", r"1 - 2\sin^2 x", judge=asked)
        assert asked.calls == 1
        assert not is_right(r"\boxed{\cos 3x}", r"1 - 2\sin^2 x", judge=asked)
        assert asked.calls == 1
        asked._child.kill()  # as the system does that needs the memory: nothing waits for it now
        while not asked._child.has_died:
            time.sleep(0.01)
        assert is_right(r"\boxed{\cos 4x}", r"1 - 2\sin^2 2x", judge=asked)
    finally:
        asked.close()


@pytest.mark.slow
def test_what_takes_too_long_is_undecided_and_the_next_is_not() -> None:
    asked = library.Library(time_limit=0.001)
    try:
        for _ in range(2):
            with pytest.raises(Undecided, match=r"judge\.time_limit"):
                is_right(r"\boxed{\cos 2x}", r"1 - 2\sin^2 x", judge=asked)
        assert asked.calls == 1
        asked._limit = 60.0
        assert is_right(r"\boxed{\cos 4x}", r"1 - 2\sin^2 2x", judge=asked)
    finally:
        asked.close()
    assert asked._child.connection is None


def test_votes_are_for_answers_that_are_the_same() -> None:
    texts = [
        r"\boxed{\frac{\pi}{3}}",
        r"\boxed{\pi/3}",
        r"\boxed{3x+4}",
        "so $4+3x$.",
        r"\boxed{10^4}",
        "10,000",
    ]
    texts += [r"\boxed{x > 7}", "so $7 < x$", r"\boxed{2, 5}", r"\boxed{5, 2}", r"\boxed{}", r"\boxed{7}"]
    names = [final_answer(text) for text in texts]
    assert names[0] == names[1] != names[2] == names[3] != names[4] == names[5] == "10000"
    assert names[6] == names[7] != names[11]
    assert names[8] == names[9]
    assert names[10] == ""
    shown = final_answers(texts)
    assert shown[:4] == [r"\frac{\pi}{3}"] * 2 + ["3x+4"] * 2
    assert shown[6:8] == ["x > 7"] * 2


PIECES = [
    *"x2i7.,;()[]{}|+-*/^!_=<>$% ",
    *(r"\frac", r"\sqrt", r"\pm", r"\cup", r"\{", r"\}", r"\text{or}", "_{", "^{", r"\text{cm}", r"\left("),
    *(r"\le", r"\infty", r"\sin", r"\log", r"\binom", r"\pi", "999", r"\in", "\\\\"),
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_any_text_is_read_and_is_the_same_as_itself(text: str) -> None:
    form = read(text)
    assert same(form, read(f" {text}\n"), lambda one, other: one == other) or form.how == "" or "\\\\" in text


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "(" * 400,
        r"\{" * 200,
        "x^" * 200,
        "-" * 400,
        "1," * 200,
        "9^" * 200 + "9",
        r"\sqrt{" * 66,
        "500!^" * 80,
        "x+" * 199 + "x",
    ],
)
def test_no_answer_takes_long(text: str) -> None:
    read(text)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("#### 18", "number"),
        (r"so \boxed{7\sqrt{11}}", "expression"),
        ("x > 3", "relation"),
        ("(4, 9)", "interval"),
        ("x + y = 7", "equation"),
        ("2,5,8", "list"),
        ("Paris", "text"),
        (r"\int_0^1 f", "text"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "matrix"),
    ],
)
def test_kinds_of_references(reference: str, kind: str) -> None:
    assert kind_of(reference) == kind
