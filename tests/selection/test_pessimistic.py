"""The choice that distrusts judges: by hand, and what it promises of ties, scales and what is missing."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.midranks import midranks
from rs_aligner.rollout import Group, Score
from rs_aligner.selection import NOT_SCORED, Progress
from tests.selection.steps import NOW, chain, group, kept, select, steps

pytestmark = pytest.mark.timeout(60)

BOTH = {"name": "pessimistic", "k": 1, "components": ["first", "second"]}
UNSURE = {"name": "pessimistic", "k": 1, "disagreement": "std"}
slowly = settings(max_examples=60)
SCALES = st.sampled_from(["rank", "zscore", "none"])


def judged(*views: tuple[float, float] | None, **how: Any) -> Group:
    """A group that two judges scored; the reward is the first one's, as where only that one is optimised."""
    made = group([None if seen is None else seen[0] for seen in views], **how)
    made.scores = [
        replace(score, components={"first": seen[0], "second": seen[1]})
        if isinstance(score, Score)
        else score
        for score, seen in zip(made.scores, views, strict=True)
        if seen is not None or not isinstance(score, Score)
    ]
    return made


def test_what_one_judge_alone_sees_is_not_kept():
    # The first pays for a word, the second for another; the third rollout is what both find good.
    step = [judged((9.0, 0.1), (0.2, 7.0), (0.9, 0.9), (0.5, 0.5))]
    assert select(step, {"name": "topk", "k": 1}) == [[0]]
    assert select(step, BOTH) == [[2]]
    assert select(step, {**BOTH, "k": 2}) == [[2, 3]]
    assert select(step, {**BOTH, "coefficient": 1}) == [[2]]


def test_a_tail_hides_what_others_see_from_standardised_scores_and_not_from_ranks():
    step = [judged((30.0, 0.62), (0.9, 0.9), (0.8, 0.8), (0.5, 0.5), (0.3, 0.3))]
    assert select(step, BOTH) == [[1]]
    assert select(step, {**BOTH, "scale": "zscore"}) == [[0]]


def test_by_standardised_scores_a_judge_counts_by_its_spread_in_the_step():
    # What the second judge sees in the first group is next to nothing beside what it sees in the other.
    step = [
        judged((0.0, 0.01), (1.0, 0.0), id="a"),
        judged((0.0, 5.0), (1.0, -5.0), id="b"),
    ]
    assert select(step, {**BOTH, "scale": "zscore", "coefficient": 0}) == [[1], [0]]
    assert select(step, {**BOTH, "scale": "rank", "coefficient": 0}) == [[1], [1]]  # tied: the higher reward


def test_the_judges_own_disagreement_is_taken_off():
    made = group([1.0, 0.9, 0.5])
    made.scores = [Score(r, {"std": std}) for r, std in ((1.0, 0.8), (0.9, 0.1), (0.5, 0.0))]
    assert select([made], UNSURE) == [[1]]
    assert select([made], {**UNSURE, "coefficient": 5}) == [[2]]
    assert select([made], {**UNSURE, "coefficient": 0}) == [[0]]


def test_the_reward_itself_may_be_one_of_the_judges():
    made = group([3.0, 2.0, 1.0])
    made.scores = [Score(r, {"second": other}) for r, other in ((3.0, 0.0), (2.0, 2.0), (1.0, 1.0))]
    assert select([made], {**BOTH, "components": ["reward", "second"]}) == [[1]]


def test_ties_go_to_the_mean_then_to_the_reward_then_to_the_lower_index():
    three = {**BOTH, "components": ["a", "b", "c"]}
    made = group([0.0, 0.0])
    made.scores = [Score(0.0, {"a": 1, "b": 2, "c": 1}), Score(0.0, {"a": 2, "b": 1, "c": 2})]
    assert select([made], three) == [[1]]
    assert select([judged((1.0, 2.0), (2.0, 1.0))], BOTH) == [[1]]
    assert select([judged((1.0, 1.0), (1.0, 1.0))], BOTH) == [[0]]


def test_what_lacks_a_component_is_rejected_with_its_name_and_the_rest_is_judged():
    made = judged((1.0, 1.0), (0.5, 0.5), None)
    made.scores[0] = Score(1.0, {"first": 1.0})
    selection = chain(BOTH).select([made], NOW)
    assert kept(selection) == [[1]]
    assert selection.reasons == (("score without first or second", "kept", NOT_SCORED),)
    assert selection.reason_counts() == {
        "rejected/not_scored": 1,
        "rejected/score_without_first_or_second": 1,
        "rejected/not_in_pessimistic_top_n": 0,
    }


def test_a_component_that_no_score_has_ends_the_run_and_names_those_there_are():
    known = r"no score has the component 'secnd'; this judge's are first, reward, second"
    with pytest.raises(ValueError, match=rf"selection\.1\.components: {known}"):
        select([judged((1.0, 1.0))], {"name": "all"}, {**BOTH, "components": ["first", "secnd"]})
    with pytest.raises(ValueError, match=r"selection\.0\.disagreement: no score has the component 'std'; "):
        select([group([1.0, 2.0])], UNSURE)
    assert select([group([None, None])], UNSURE) == [[]]  # nothing is known of its components
    assert select([], BOTH) == []


def test_what_earlier_selectors_rejected_has_no_rank():
    others = (3.0, 1.0), (1.0, 3.0), (2.0, 2.0)
    for cut in ((9.0, 0.0), (0.0, 9.0), (2.5, 2.5)):
        step = [judged(cut, *others, truncated=(0,))]
        assert select(step, {"name": "truncated"}, BOTH) == [[3]]


def test_new_and_banked_rollouts_are_ranked_together():
    bank = judged((0.9, 0.2), (0.3, 0.9), (0.6, 0.6))
    bank.rollouts = [replace(one, policy_version=n) for n, one in enumerate(bank.rollouts)]
    assert select([bank], BOTH) == [[2]]


@slowly
@given(groups=steps(), k=st.integers(1, 6))
def test_without_a_coefficient_disagreement_changes_nothing(groups: list[Group], k: int):
    rule = {"name": "pessimistic", "disagreement": "second", "coefficient": 0, "k": k}
    assert select(groups, rule) == select(groups, {"name": "topk", "k": k})


@slowly
@given(groups=steps(), k=st.integers(1, 6), scale=st.sampled_from(["rank", "none"]))  # rounding breaks ties
def test_of_two_judges_the_lowest_is_the_mean_less_one_standard_deviation(groups, k, scale):
    rule = {**BOTH, "k": k, "scale": scale}
    assert select(groups, rule) == select(groups, {**rule, "coefficient": 1})


@slowly
@given(groups=steps(), k=st.integers(1, 6), coefficient=st.sampled_from([None, 0.0, 0.5, 2.0]))
def test_by_rank_each_judge_may_have_a_scale_of_its_own(groups, k, coefficient):
    rule = {**BOTH, "k": k, "coefficient": coefficient}
    bent = [
        replace(g, scores=[_bent(score) if isinstance(score, Score) else score for score in g.scores])
        for g in groups
    ]
    assert select(groups, rule) == select(bent, rule)


def _bent(score: Score) -> Score:
    first, second = score.components["first"], score.components["second"]
    return replace(score, components={"first": first**3 + 7, "second": 1000 * second - 1})


@slowly
@given(groups=steps(), k=st.integers(1, 6), scale=SCALES, coefficient=st.sampled_from([None, 0.0, 2.0]))
def test_judges_that_agree_keep_the_best(groups, k, scale, coefficient):
    agreeing = [
        replace(
            g,
            scores=[
                replace(s, components={"first": s.reward, "second": s.reward}) if isinstance(s, Score) else s
                for s in g.scores
            ],
        )
        for g in groups
    ]
    rule = {**BOTH, "k": k, "scale": scale, "coefficient": coefficient}
    assert select(agreeing, rule) == select(groups, {"name": "topk", "k": k})


@slowly
@given(groups=steps(ties=False), data=st.data(), scale=SCALES)
def test_what_is_kept_stays_kept_when_both_judges_like_it_more(groups, data, scale):
    rule = {**BOTH, "scale": scale}
    before = select(groups, rule)
    rows = [row for row, places in enumerate(before) if places]
    if not rows:
        return
    row = data.draw(st.sampled_from(rows))
    (place,) = before[row]
    scores = list(groups[row].scores)
    best = scores[place]
    assert isinstance(best, Score)
    more = {name: value + 1e7 for name, value in best.components.items()}
    scores[place] = Score(best.reward + 1e7, more)
    groups[row] = replace(groups[row], scores=scores)
    assert select(groups, rule)[row] == [place]


@given(st.lists(st.integers(-3, 3).map(float), max_size=9))
def test_ranks_count_what_is_lower_and_share_ties(values):
    expected = [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]
    assert midranks(values) == expected
    assert sum(midranks(values)) == len(values) * (len(values) + 1) / 2


def test_the_spread_is_that_of_the_judges_views():
    views = {"a": [1.0, 3.0], "b": [5.0, 3.2], "c": [3.0, 3.1]}
    made = group([0.0, 0.0])
    made.scores = [Score(0.0, {name: values[n] for name, values in views.items()}) for n in range(2)]
    rule = {"name": "pessimistic", "k": 1, "components": ["a", "b", "c"], "scale": "none"}
    for coefficient in (0, 0.01, 0.1, 1):
        worth = [
            fmean(v[n] for v in views.values()) - coefficient * pstdev([v[n] for v in views.values()])
            for n in range(2)
        ]
        best = max(range(2), key=worth.__getitem__)
        assert select([made], {**rule, "coefficient": coefficient}, progress=Progress(1, 1)) == [[best]]
