"""A second judge that is only watched, and the warning when the two part."""

from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.proof.watched import Parting, Validation, mean_and_error, rank_correlation, watched_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Selection

FAILED = ScoreFailure("timed out")


def result(reward: float | None) -> Score | ScoreFailure:
    return FAILED if reward is None else Score(reward)


def a_group(number: int, rewards: list[float | None]) -> Group:
    rollouts = [Rollout(number, n, (n,), "", "stop") for n in range(len(rewards))]
    return Group(Prompt(str(number), "text", (1,)), rollouts, [result(reward) for reward in rewards])


def test_the_watched_figures_by_hand():
    groups = [a_group(0, [1.0, 2.0, 3.0]), a_group(1, [5.0, None]), a_group(2, [1.0, 2.0, 4.0])]
    keep = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    watched = [
        [result(0.3), result(0.2), result(0.1)],  # the other way round
        [result(1.0), result(0.0)],  # one that both scored: no order
        [result(0.1), result(0.9), FAILED],  # agrees, as far as it says
    ]
    metrics = watched_metrics(groups, Selection(keep, ()), watched)
    assert metrics == {
        "watched/failed": 1,
        "watched/mean": pytest.approx((0.6 + 1.0 + 1.0) / 7),
        "watched/kept_mean": pytest.approx((0.1 + 1.0) / 2),
        "watched/kept_minus_mean": pytest.approx(0.55 - 2.6 / 7),
        "watched/rank_correlation": pytest.approx((-1 + 1) / 2),
    }


def test_a_judge_that_says_nothing_has_no_figures():
    keep = Selection(torch.ones(1, 2, dtype=torch.bool), ())
    assert watched_metrics([a_group(0, [1.0, 2.0])], keep, [[FAILED, FAILED]]) == {"watched/failed": 2}
    with pytest.raises(ValueError, match=r"\[1\] a group, the rollouts \[2\]"):
        watched_metrics([a_group(0, [1.0, 2.0])], keep, [[FAILED]])


values = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)


@given(values)
def test_the_rank_correlation_is_that_of_mean_ranks(pairs):
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return

    def ranks(column: list[float]) -> list[float]:
        return [sum(o < v for o in column) + (sum(o == v for o in column) + 1) / 2 for v in column]

    assert found == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-9)
    assert rank_correlation(x, [10 * v + 3 for v in y]) == pytest.approx(found)


def test_the_error_of_a_mean_is_that_of_the_prompts():
    scores = [[Score(1.0), Score(3.0), FAILED], [Score(4.0)], [FAILED], [Score(0.0)]]
    assert mean_and_error(scores) == (2.0, pytest.approx(stdev([2.0, 4.0, 0.0]) / math.sqrt(3)))
    assert mean_and_error([[Score(1.0), Score(2.0)], [FAILED]]) is None


def said(*figures: tuple[float, float], error: float = 0.01) -> list[str | None]:
    """What a detector says at validations of these (optimised, watched) scores."""
    parting = Parting()
    return [parting.observe(Validation(s, r, error, w, error)) for s, (r, w) in enumerate(figures)]


def test_rising_together_is_no_parting():
    assert said((0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.4, 0.3)) == [None] * 4


def test_falling_together_is_no_parting():
    assert said((0.4, 0.4), (0.3, 0.3), (0.2, 0.2)) == [None] * 3


def test_the_judges_part_once_and_the_line_names_where_they_agreed_best():
    lines = said((0.1, 0.1), (0.2, 0.3), (0.3, 0.28), (0.5, 0.2), (0.6, 0.1))
    # At step 2 the watched judge has fallen by 0.02, less than two errors of 0.014.
    assert [line is not None for line in lines] == [False, False, False, True, False]
    assert lines[3] is not None
    assert "since step 1" in lines[3]
    assert "0.2000 to 0.5000" in lines[3]
    assert "0.3000 to 0.2000" in lines[3]
    assert "\n" not in lines[3]


@pytest.mark.parametrize(
    ("rise", "fall", "parts"),
    [
        (0.03, 0.03, True),
        (0.028, 0.03, False),
        (0.03, 0.028, False),
        (-0.03, 0.03, False),
        (0.001, 0.042, False),
        (0.001, 0.043, True),
        (0.0, 0.043, True),
        (-0.001, 0.5, False),
    ],
)
def test_both_differences_exceed_two_standard_errors_or_the_fall_alone_three(rise, fall, parts):
    # Two errors of 0.01 make 2 sqrt(2) 0.01 = 0.02828; three 0.04243.
    lines = said((0.5, 0.5), (0.5 + rise, 0.5 - fall))
    assert (lines[1] is not None) == parts


@pytest.mark.parametrize(("fall", "parts"), [(0.004, False), (0.006, True)])
def test_a_fall_by_less_than_a_hundredth_of_the_gain_is_none(fall, parts):
    *before, last = said((0.3, 0.4), (0.8, 0.9), (0.9, 0.9 - fall), error=1e-6)
    assert (last is not None) is parts
    assert before == [None, None]


def test_judges_that_met_again_can_part_again():
    lines = said((0.1, 0.5), (0.5, 0.2), (0.5, 0.5), (0.9, 0.1))
    assert [line is not None for line in lines] == [False, True, False, True]


def test_a_detector_goes_on_where_it_was_saved():
    first, second = Parting(), Parting()
    first.observe(Validation(0, 0.1, 0.01, 0.5, 0.01))
    second.load_state_dict(first.state_dict())
    assert second.observe(Validation(5, 0.5, 0.01, 0.2, 0.01)) is not None
    assert second.has_parted
    third = Parting()
    third.load_state_dict(second.state_dict())
    assert third.observe(Validation(6, 0.6, 0.01, 0.1, 0.01)) is None  # it has been said
    assert third.has_parted
    third.load_state_dict(Parting().state_dict())
    assert not third.has_parted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_an_error_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="finite means and errors"):
        Parting().observe(Validation(0, 0.1, bad, 0.5, 0.01))
