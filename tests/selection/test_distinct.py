"""Duplicates, near-duplicates, distinct answers and diversity, by hand and against slow versions."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.answers import final_answer
from rs_aligner.rollout import Group
from rs_aligner.selection.likeness import (
    edit_distance,
    edit_likeness,
    edit_likeness_at_most,
    jaccard,
    ngrams,
    normalised,
)
from tests.selection.steps import NOW, chain, group, kept, select, steps

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def test_of_equal_texts_the_better_stays_and_of_equally_good_ones_the_first():
    texts = ["same", "same", "Same ", "other", "other"]
    groups = [group([1.0, 2.0, 0.0, 3.0, 3.0], texts), group([0.0], ["same"])]
    assert select(groups, {"name": "duplicates"}) == [[1, 2, 3], [0]]
    assert select(groups, {"name": "duplicates", "normalized": True}) == [[1, 3], [0]]


def test_the_better_of_two_equal_texts_stays_only_if_it_is_still_there():
    groups = [group([1.0, 2.0], ["same", "same"], truncated=[1])]
    assert select(groups, {"name": "truncated"}, {"name": "duplicates"}) == [[0]]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Two  words\n", "two words", True),
        ("\uff11\u00bd", "11\u20442", True),  # full-width and vulgar forms
        ("Straße", "STRASSE", True),
        ("x!", "x", False),
        ("ab", "a b", False),
    ],
)
def test_what_normalising_makes_equal(one, other, same):
    assert (normalised(one) == normalised(other)) is same


@pytest.mark.parametrize(("against", "stays"), [("group", [0, 2]), ("earlier", [1, 2, 3]), ("both", [1, 2])])
def test_duplicates_of_the_group_of_earlier_steps_or_of_both(against, stays):
    made = chain({"name": "duplicates", "against": against}, {"name": "topk", "k": 4})
    first = [group([1.0], ["old"], row=3), group([1.0], ["new"], row=4)]
    made.remember(first, made.select(first, NOW))
    second = [group([9.0, 1.0, 2.0, 1.0], ["old", "new", "other", "new"], version=1, row=3)]
    if against == "group":
        second = [group([9.0, 1.0, 2.0, 1.0], ["old", "old", "other", "old"], version=1, row=3)]
    assert kept(made.select(second, NOW)) == [stays]


def test_only_what_was_kept_is_remembered_and_only_for_its_prompt():
    made = chain({"name": "duplicates", "against": "both"}, {"name": "topk"})
    first = [group([1.0, 2.0], ["worse", "better"], id="a"), group([0.0], ["else"], id="b")]
    made.remember(first, made.select(first, NOW))
    second = [
        group([1.0, 2.0], ["worse", "better"], version=1, id="a"),
        group([1.0], ["better"], version=1, id="b"),
    ]
    assert kept(made.select(second, NOW)) == [[0], [0]]
    # A prompt with a row is another than one with the same id and none, and the row decides.
    assert kept(made.select([group([2.0], ["better"], id="a", row=0)], NOW)) == [[0]]


def test_a_chain_that_is_fed_the_earlier_steps_goes_on_as_if_it_had_made_them():
    selectors = [{"name": "duplicates", "against": "earlier", "normalized": True}, {"name": "topk", "k": 2}]
    made, resumed = chain(*selectors), chain(*selectors)
    done = []
    for texts in (["a", "b", "c"], ["A ", "b", "d"], ["\ud800", "e", "c"]):
        groups = [group([3.0, 2.0, 1.0], texts, row=0), group([1.0, 1.0, 2.0], texts, row=1)]
        selection = made.select(groups, NOW)
        made.remember(groups, selection)
        done.append((groups, selection))
    for groups, selection in done:
        resumed.remember(groups, selection)
    again = [group([3.0, 2.0, 1.0], ["C", "\ud800", "f"], row=row) for row in (0, 1)]
    assert made.select(again, NOW).reasons == resumed.select(again, NOW).reasons
    assert kept(made.select(again, NOW)) == [[0, 2], [2]]


def test_at_most_k_of_each_final_answer():
    texts = ["so 1,000", "#### 1000.0", r"\boxed{7}", "I do not know", "the answer is 7", "It is 10 %", "0.1"]
    groups = [group([1.0, 2.0, 0.0, 5.0, 4.0, 1.0, 1.0], texts)]
    assert select(groups, {"name": "distinct_answers"}) == [[1, 3, 4, 5]]
    assert select(groups, {"name": "distinct_answers", "k": 2}) == [[0, 1, 2, 3, 4, 5, 6]]


def test_answers_by_a_pattern_are_those_of_its_last_match_and_no_match_is_one_answer():
    texts = ["A: 1 A: 2", "A: 2", "A: 1", "none", "nothing"]
    named = {"name": "distinct_answers", "pattern": r"A: (\d)"}
    assert select([group([1.0, 2.0, 3.0, 1.0, 2.0], texts)], named) == [[1, 2, 4]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 = 13\n#### 13", "13"),
        (r"thus \boxed{\frac{1}{2}}", "1/2"),
        ("50%", "1/2"),
        ("first 3, then 4.50", "9/2"),
        ("#### Paris.", "paris"),
        ("Nobody knows.\nReally", "nobody knows"),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


def test_near_duplicates_by_n_grams():
    # Trigrams of 0: 123, 234, 345. Of 1: two of these three and 346, so 2 of 4 are shared.
    tokens = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (7, 8, 9), (7, 8, 9)]
    groups = [group([1.0, 2.0, 3.0, 3.0], tokens=tokens)]
    named = {"name": "near_duplicates", "n": 3}
    assert select(groups, {**named, "similarity": 0.5}) == [[1, 2]]
    assert select(groups, {**named, "similarity": 0.51}) == [[0, 1, 2]]
    assert select(groups, {**named, "similarity": 1.0}) == [[0, 1, 2]]


def test_near_duplicates_by_edits():
    # One of five tokens differs between 0 and 1: likeness 0.8. A shift costs two edits of five.
    tokens = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (2, 3, 4, 5, 1), ()]
    groups = [group([1.0, 2.0, 0.0, 0.0], tokens=tokens)]
    named = {"name": "near_duplicates", "measure": "edit"}
    assert select(groups, {**named, "similarity": 0.8}) == [[1, 2, 3]]
    assert select(groups, {**named, "similarity": 0.81}) == [[0, 1, 2, 3]]
    assert select(groups, {**named, "similarity": 0.6}) == [[1, 2, 3]]


def test_a_response_that_is_like_a_rejected_one_may_stay():
    # 0 is like 1 and 1 is like 2, but 0 is not like 2: the greedy choice keeps both ends.
    tokens = [(1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)]
    groups = [group([3.0, 2.0, 1.0], tokens=tokens)]
    assert select(groups, {"name": "near_duplicates", "n": 1, "similarity": 0.5}) == [[0, 2]]


@settings(max_examples=50)
@given(
    groups=steps(), similarity=st.sampled_from([0.3, 0.5, 0.9]), measure=st.sampled_from(["ngram", "edit"])
)
def test_no_two_that_stay_are_alike_and_what_goes_is_like_a_better_one(groups, similarity, measure):
    named = {"name": "near_duplicates", "n": 2, "similarity": similarity, "measure": measure}

    def likeness(one: Group, a: int, b: int) -> float:
        first, second = one.rollouts[a].token_ids, one.rollouts[b].token_ids
        if measure == "edit":
            return edit_likeness(first, second)
        return jaccard(ngrams(first, 2), ngrams(second, 2))

    for one, stay in zip(groups, select(groups, named), strict=True):
        assert all(likeness(one, a, b) < similarity for a, b in combinations(stay, 2))
        for gone, score in enumerate(one.scores):
            if gone not in stay and hasattr(score, "reward"):
                better = [b for b in stay if one.scores[b].reward >= score.reward]
                assert any(likeness(one, gone, b) >= similarity for b in better)


def test_the_most_different_begin_with_the_best():
    # Tokens as single n-grams. 3 is best; 1 shares nothing with it, 0 one of three, 2 is the same set.
    tokens = [(1, 9), (5, 6), (1, 2), (2, 1)]
    groups = [group([3.0, 1.0, 2.0, 4.0], tokens=tokens)]
    picks = [select(groups, {"name": "diverse", "k": k, "n": 1}) for k in (1, 2, 3, 4)]
    assert picks == [[[3]], [[1, 3]], [[0, 1, 3]], [[0, 1, 2, 3]]]


def test_equally_far_goes_to_the_better_and_then_to_the_first():
    groups = [group([1.0, 9.0, 2.0, 2.0], tokens=[(1,), (2,), (3,), (4,)])]
    assert select(groups, {"name": "diverse", "k": 2}) == [[1, 2]]


def slow_distance(a: list[int], b: list[int]) -> int:
    """Row by row: the distance of the first tokens of one to the first tokens of the other."""
    row = list(range(len(b) + 1))
    for count, token in enumerate(a, start=1):
        above, row = row, [count]
        for place, other in enumerate(b):
            row.append(min(above[place + 1] + 1, row[place] + 1, above[place] + (token != other)))
    return row[-1]


IDS = st.one_of(st.integers(0, 3), st.sampled_from([97, 255, 256, 65_535, 65_536, 151_643, 262_143]))


@given(st.lists(IDS, max_size=150), st.lists(IDS, max_size=150))
def test_the_edit_distance_is_that_of_its_definition(a, b):
    """Also beyond 64 tokens, a machine's word, and for ids of large vocabularies."""
    assert edit_distance(a, b) == slow_distance(a, b)
    assert edit_distance(tuple(a), tuple(b)) == slow_distance(a, b)


@given(TOKENS, TOKENS)
def test_the_quick_bound_of_the_likeness_is_one(a, b):
    bound = edit_likeness_at_most(Counter(a), Counter(b))
    assert bound == edit_likeness_at_most(Counter(b), Counter(a))
    assert edit_likeness(a, b) <= bound <= 1


def test_edits_of_long_sequences():
    a = [n * 7919 % 101 for n in range(1000)]
    assert edit_distance(a, [*a[3:], 5]) == 4
    assert edit_distance(a, []) == 1000


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [
        ((1, 2, 3), (1, 2, 3), 1.0),
        ((1, 2), (1, 2), 1.0),
        ((), (), 1.0),
        ((), (1,), 0.0),
        ((1, 1, 1, 1), (1, 1, 1), 1.0),
    ],
)
def test_n_grams_in_common_of_short_sequences(a, b, share):
    assert jaccard(ngrams(a, 3), ngrams(b, 3)) == share
