"""The chain: the plain recipe, what came first, reasons, counts, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.rollout import Score
from rs_aligner.selection import KEPT, NOT_SCORED, Progress, build_chain, nothing_kept
from tests.selection.steps import NOW, chain, group, kept, steps


@given(groups=steps(), top_n=st.integers(1, 7), min_reward=st.sampled_from([None, -2.0, 0.0, 0.75, math.inf]))
def test_the_plain_recipe_takes_the_best_of_what_reaches_min_reward(groups, top_n, min_reward):
    selection = build_chain((), top_n=top_n, min_reward=min_reward).select(groups, NOW)
    least = -math.inf if min_reward is None else min_reward
    for one, reasons in zip(groups, selection.reasons, strict=True):
        rewards = {n: score.reward for n, score in enumerate(one.scores) if isinstance(score, Score)}
        good = sorted((n for n, r in rewards.items() if r >= least), key=lambda n: (-rewards[n], n))
        for n, reason in enumerate(reasons):
            if n not in rewards:
                assert reason == NOT_SCORED
            elif n not in good:
                assert reason == "below min_reward"
            else:
                assert reason == (KEPT if n in good[:top_n] else "not in the top n")


def test_rewards_are_not_rounded():
    groups = [group([1.0, 1.0 + 1e-12]), group([1e39, 2e39])]
    assert kept(build_chain((), top_n=1).select(groups, NOW)) == [[1], [1]]


def test_the_order_of_the_chain_decides():
    groups = [group([3.0, 2.0, 1.0], truncated=[0])]
    truncated, best = {"name": "truncated"}, {"name": "topk", "k": 1}
    assert kept(chain(truncated, best).select(groups, NOW)) == [[1]]
    assert kept(chain(best, truncated).select(groups, NOW)) == [[]]


def test_each_rejection_has_the_reason_of_the_first_that_rejected_it():
    groups = [group([None, 1.0, 2.0, 0.0, 3.0], truncated=[4, 0]), group([]), group([None])]
    selection = chain({"name": "truncated"}, {"name": "positive"}, {"name": "topk"}).select(groups, NOW)
    assert selection.reasons == (
        ("not scored", "not in the top n", "kept", "not positive", "truncated"),
        (),
        ("not scored",),
    )
    assert selection.keep.tolist() == [[False, False, True, False, False], [False] * 5, [False] * 5]
    assert selection.reason_counts() == {
        "rejected/not_scored": 2,
        "rejected/truncated": 1,
        "rejected/not_positive": 1,
        "rejected/not_in_top_n": 1,
    }


def test_a_reason_that_did_not_occur_is_counted_as_none():
    selection = chain({"name": "truncated"}, {"name": "all"}).select([group([1.0])], NOW)
    assert selection.reason_counts() == {"rejected/not_scored": 0, "rejected/truncated": 0}


def test_a_reason_that_no_selector_has_is_counted_like_any_other():
    selection = nothing_kept([group([1.0, 2.0]), group([3.0])], "the step went bad")
    assert selection.reason_counts() == {"rejected/step_went_bad": 3}


def test_groups_of_different_sizes_are_walked_without_the_places_that_do_not_exist():
    groups = [group([1.0, 2.0, 3.0]), group([5.0])]
    selection = chain({"name": "topk", "k": 2}).select(groups, NOW)
    assert [(len(keep), why) for _, keep, why in selection.rows(groups)] == [
        (3, ("not in the top n", "kept", "kept")),
        (1, ("kept",)),
    ]
    assert [(one is groups[1], place) for one, place in selection.kept(groups)] == [
        (False, 1),
        (False, 2),
        (True, 0),
    ]
    for others in (groups[:1], [groups[0], groups[0]]):
        with pytest.raises(ValueError, match="zip"):
            list(selection.kept(others))


def test_nothing_is_kept_of_groups_of_different_sizes():
    selection = nothing_kept([group([1.0, 2.0]), group([])], "why not")
    assert selection.keep.tolist() == [[False, False], [False, False]]
    assert selection.reasons == (("why not", "why not"), ())


def test_a_chain_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="top_n must be at least 1"):
        build_chain((), top_n=0)
    with pytest.raises(ValueError, match="min_reward must be a number"):
        build_chain((), top_n=1, min_reward=math.nan)
    configs = [type("", (), {})]
    with pytest.raises(ValueError, match="put a threshold selector into it"):
        build_chain(configs, top_n=1, min_reward=0.5)  # type: ignore[arg-type]  # no config on purpose


@pytest.mark.parametrize("wrong", [(0, 3), (4, 3), (1, 1, 1, 1), (1, 1, -1, 1)])
def test_progress_is_within_its_bounds(wrong):
    with pytest.raises(ValueError, match="none of"):
        Progress(*wrong)
