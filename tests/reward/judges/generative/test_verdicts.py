"""What is a verdict and what is none: a number, a field of JSON, a label by its text or its probability."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.config.openai_judge import ScoreConfig
from rs_aligner.reward.judges.generative.completion import Completion, NoVerdict, Token
from rs_aligner.reward.judges.generative.verdicts import Verdict, joined, read_verdict

pytestmark = pytest.mark.timeout(60)

GOOD_BAD = {"good": 1.0, "bad": -1.0}


def value(text: str, *, is_cut: bool = False, **how: Any) -> float:
    return read_verdict(Completion(text, is_cut), ScoreConfig(**how)).value


def why_not(text: str, *, is_cut: bool = False, **how: Any) -> str:
    with pytest.raises(NoVerdict) as told:
        value(text, is_cut=is_cut, **how)
    return str(told.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("7", 7), (" 7.5\n", 7.5), ("**7**", 7), ("7.", 7), ("Score: 7", 7), ("Score: **7**", 7)],
        *[("7/10", 7), ("7 out of 10.", 7), ("`0`", 0), ("10", 10), ("(3)", 3), (".5", 0.5), ("+2", 2)],
        ("<think>2 and then 3</think>\n\n4", 4),
        ("3 points?</think>5", 5),
    ],
)
def test_a_number_alone_is_a_verdict(text: str, number: float) -> None:
    assert value(text) == number


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[(text, "not one number alone") for text in ("seven", "7 or 8", "7 8", "I'd say 7", "7 points")],
        *[
            (text, "not one number alone")
            for text in ("", "-", "nan", "inf", "1e1", "7,5", "½", "\uff17", "7%")
        ],
        *[(text, "not one number alone") for text in ("7th", "0x7", "2 + 2 = 4, so 7", "7\n8", "--7")],
        *[(text, "not from 0 to 10") for text in ("11", "-1", "10.001", "9" * 400)],
        ("7/5", "out of 5, and judge.kwargs.score.highest is 10"),
        ("<think>it is a 7", "its thoughts have no end"),
    ],
)
def test_what_is_no_number_alone_is_no_verdict(text: str, why: str) -> None:
    assert why in why_not(text)


def test_bounds_are_the_settings_and_may_be_left_out() -> None:
    assert value("-3", lowest=-5, highest=5) == -3
    assert value("4/5", highest=5) == 4
    assert value("123", lowest=None, highest=None) == 123
    assert "not from -inf to inf" in why_not("9" * 400, lowest=None, highest=None)


def test_what_stands_behind_the_last_mark_counts_and_only_its_line() -> None:
    said = "The text says Score: 10 of itself.\nScore: 3\nThat is all."
    assert value(said, after="Score:") == 3
    assert value("ok <verdict>\n 4 \n</verdict>", after="<verdict>") == 4
    assert "there is no 'Score:' in it" in why_not("3", after="Score:")
    assert "not one number alone" in why_not("Score: 3 or 4", after="Score:")
    assert "there is no 'Score:' in it" in why_not("<think>Score: 3</think>well", after="Score:")


@pytest.mark.parametrize(
    "text", ['{"score": 7}', '```json\n{"score": 7.0}\n```', ' {"why": "x", "score": 7} ']
)
def test_a_field_of_an_object_is_a_verdict(text: str) -> None:
    assert value(text, kind="json") == 7


def test_a_field_may_lie_deeper() -> None:
    assert value('{"a": {"b": 2}}', kind="json", field="a.b") == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[(text, "no JSON object") for text in ("7 points", '{"score": 7', '{"score": 7} {"score": 8}', "")],
        *[(text, "no JSON object") for text in ('{"score": NaN}', '{"score": 1, "score": 10}', "[" * 9999)],
        *[(text, "no field score") for text in ("[7]", "7", '{"points": 7}', "{}", "null")],
        *[(f'{{"score": {v}}}', "is no number") for v in ('"7"', "true", "null", "[7]", '{"a": 1}')],
        ('{"score": 11}', "not from 0 to 10"),
        (f'{{"score": {"9" * 400}}}', "too large"),
    ],
)
def test_what_is_no_field_is_no_verdict(text: str, why: str) -> None:
    assert why in why_not(text, kind="json")


@pytest.mark.parametrize("text", ["good", " Good.", "**good**", "(GOOD)", '"good"', "good\n"])
def test_a_label_alone_is_a_verdict(text: str) -> None:
    assert value(text, kind="labels", labels=GOOD_BAD) == 1


@pytest.mark.parametrize("text", ["goodness", "good or bad", "not good", "", "very good", "1"])
def test_what_is_no_label_alone_is_no_verdict(text: str) -> None:
    assert "none of good, bad alone" in why_not(text, kind="labels", labels=GOOD_BAD)


@pytest.mark.parametrize("how", [{}, {"kind": "json"}, {"kind": "labels", "labels": GOOD_BAD}])
def test_an_answer_that_was_cut_is_no_verdict(how: dict[str, Any]) -> None:
    assert "judge.kwargs.max_tokens" in why_not("7", is_cut=True, **how)


@given(st.text(max_size=40))
def test_whatever_is_said_is_a_number_within_bounds_or_none(text: str) -> None:
    for how in ({}, {"kind": "json"}, {"kind": "labels", "labels": GOOD_BAD}, {"after": ":"}):
        try:
            found = value(text, **how)  # type: ignore[arg-type]  # settings of several kinds
        except NoVerdict:
            continue
        assert -1 <= found <= 10


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_whatever_json_is_said_is_a_number_or_none(said: Any) -> None:
    text = json.dumps({"score": said})
    try:
        found = value(text, kind="json")
    except NoVerdict:
        assert isinstance(said, bool) or not isinstance(said, float) or not 0 <= said <= 10
    else:
        assert found == said


def by_probability(*tokens: tuple[str, dict[str, float]], least_mass: float = 0.5, **how: Any) -> Verdict:
    found = tuple(
        Token(text, tuple((one, math.log(chance)) for one, chance in top.items())) for text, top in tokens
    )
    text = "".join(token.text for token in found)
    settings = {"kind": "labels", "by": "logprobs", "labels": GOOD_BAD, "least_mass": least_mass, **how}
    return read_verdict(Completion(text, is_cut=True, tokens=found), ScoreConfig(**settings))


def test_the_mean_over_labels_is_by_their_probabilities_made_to_add_up() -> None:
    top = {"good": 0.3, " Good": 0.3, "▁bad": 0.2, "neither": 0.2}
    verdict = by_probability(("good", top))
    assert verdict.value == pytest.approx((0.6 - 0.2) / 0.8)
    assert verdict.variance == pytest.approx(0.75 * 0.25 * 4)


def test_the_place_of_the_label_is_behind_thoughts_marks_and_white_space() -> None:
    wrong = {"bad": 1.0}
    tokens = [("<think>", wrong), ("bad", wrong), ("</think>", wrong), ("\n", {"\n": 1.0})]
    assert by_probability(*tokens, ("**", {"**": 1.0}), ("good", {"good": 0.9, "bad": 0.1})).value == (
        pytest.approx(0.8)
    )
    last = ("good", {"good": 1.0})
    assert by_probability(("bad ", wrong), ("Verdict:", wrong), last, after="Verdict:").value == 1


def test_a_label_counts_though_a_quote_was_drawn_in_its_place() -> None:
    assert by_probability(('"', {'"': 0.4, "good": 0.3, "bad": 0.3})).value == 0


def test_labels_that_are_improbable_are_no_verdict() -> None:
    top = {"good": 0.2, "bad": 0.2, "well": 0.6}
    with pytest.raises(NoVerdict, match=r"labels have 0\.4 of the probability.*'good' 0\.2.*one token"):
        by_probability(("well", top))
    assert by_probability(("well", top), least_mass=0.4).value == 0
    with pytest.raises(NoVerdict, match="labels have 0 of the probability"):
        by_probability(("well", {"well": 1.0}), least_mass=0)


@pytest.mark.parametrize("text", ["<think>good", "</think>"])
def test_a_label_that_never_comes_is_no_verdict(text: str) -> None:
    with pytest.raises(NoVerdict, match="cannot be read"):
        by_probability((text, {"good": 1.0}))


def test_without_log_probabilities_there_is_no_mean() -> None:
    how = ScoreConfig(kind="labels", by="logprobs", labels=GOOD_BAD)
    with pytest.raises(
        NoVerdict, match=r"gave no log-probabilities that can be read; judge\.kwargs\.score\.by=text"
    ):
        read_verdict(Completion("good"), how)


def test_several_verdicts_are_their_mean_with_the_variance_of_one() -> None:
    assert joined([Verdict(2.0), Verdict(4.0), Verdict(6.0)]) == Verdict(4.0, 4.0)
    assert joined([Verdict(1.0, 0.5), Verdict(1.0, 1.5)]) == Verdict(1.0, 1.0)
    assert joined([Verdict(3.0, 0.25)]) == Verdict(3.0, 0.25)
