"""Choosing among N answers: by hand, and what holds for all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.commands.best_of_n import accuracies, answer_row, best, choose, majority, summary, weighted
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure

FAILED = ScoreFailure("timed out")


def a_group(texts: list[str], rewards: list[float | None], **row: Any) -> Group:
    rollouts = [Rollout(0, n, (1, 2), text, "stop", log_probs=(-1.0, -0.5)) for n, text in enumerate(texts)]
    return Group(
        Prompt("p", "1 + 1 =", (1,), metadata=row),
        rollouts,
        [FAILED if r is None else Score(r) for r in rewards],
    )


def test_the_best_is_the_first_of_the_highest() -> None:
    assert best([0.5, None, 2.0, 2.0]).index == 2
    assert best([-1.0, None]).index == 0
    assert best([None, None]).index is None
    assert best([]).index is None


def test_the_majority_is_counted_by_final_answers_and_ties_go_to_the_first() -> None:
    found = majority(["7", "", "3", "3", "", ""])
    assert (found.index, found.votes) == (2, {"3": 2.0, "7": 1.0})
    assert majority(["7", "3"]).index == 0
    assert majority(["", ""]).index is None


def test_a_weighted_vote_sums_rewards_and_leaves_out_what_has_none() -> None:
    answers: list[str] = ["3", "7", "3", "3", "9"]
    found = weighted(answers, [0.1, 0.5, 0.1, 0.1, None])
    assert found.index == 1
    assert found.votes == {"7": 0.5, "3": pytest.approx(0.3)}
    assert weighted(answers, [None, 0.0, 0.0, 0.0, None]).index == 1
    assert weighted(["3", "3"], [None, 0.2]).index == 1  # the one that was counted speaks for the answer
    assert weighted(answers, [None] * 5).index is None


named = st.lists(st.tuples(st.sampled_from(["", "1", "2", "x"]), st.none() | st.integers(0, 3)), max_size=8)


@given(named)
def test_whoever_is_chosen_has_the_most(pairs) -> None:
    answers, rewards = [a for a, _ in pairs], [None if r is None else float(r) for _, r in pairs]
    voted = choose("majority", answers, rewards)
    if any(answers):
        assert voted.index is not None
        most = max(answers.count(a) for a in answers if a)
        assert answers.count(answers[voted.index]) == most == next(iter(voted.votes.values()))
    else:
        assert voted.index is None
    top = choose("best", answers, rewards)
    if top.index is not None:
        assert rewards[top.index] == max(r for r in rewards if r is not None)
    assert choose("first", answers, rewards).index == (0 if pairs else None)


@given(named)
def test_equal_weights_make_the_weighted_vote_a_majority(pairs) -> None:
    answers = [a for a, _ in pairs]
    assert choose("weighted", answers, [1.0] * len(answers)) == choose("majority", answers, [])


def test_a_row_tells_all_and_can_be_trained_on() -> None:
    group = a_group(["It is 2.", "#### 3", "2"], [0.5, None, 1.0], topic="sums")
    assert answer_row(group, "majority") == {
        "id": "p",
        "text": "1 + 1 =",
        "chosen": 0,
        "response": "It is 2.",
        "responses": ["It is 2.", "#### 3", "2"],
        "rewards": [0.5, None, 1.0],
        "finish_reasons": ["stop"] * 3,
        "num_tokens": [2] * 3,
        "log_probs": [-1.5] * 3,
        "metadata": {"topic": "sums"},
        "answers": ["2", "3", "2"],
        "votes": {"2": 2.0, "3": 1.0},
    }
    assert answer_row(group, "best")["chosen"] == 2
    assert "votes" not in answer_row(group, "best")
    nothing = answer_row(a_group(["a"], [None]), "best")
    assert (nothing["chosen"], nothing["response"]) == (None, None)


def test_accuracies_compare_the_ways_to_choose() -> None:
    groups = [
        a_group(["2", "2", "3"], [0.0, 0.0, 1.0], answer="2"),
        a_group(["5", "4", "6"], [0.1, 0.9, 0.2], answer=4),
        a_group(["?", "?", "?"], [0.0, 0.0, 0.0]),  # no reference, not counted
    ]
    found = accuracies(groups, "answer", judged=True)
    assert found == {
        "one answer": pytest.approx((2 / 3 + 1 / 3) / 2),
        "majority": 0.5,
        "weighted": 0.5,
        "best": 0.5,
        "any answer": 1.0,
    }
    assert set(accuracies(groups, "answer", judged=False)) == {"one answer", "majority", "any answer"}
    assert accuracies(groups, "solution", judged=True) == {}


def test_the_summary_says_what_is_known() -> None:
    zero_one = [a_group(["2", "3"], [1.0, 0.0], answer="2"), a_group(["5", "4"], [0.0, None])]
    assert summary(zero_one, judged=True).splitlines() == [
        "mean reward 0.3333 (3 of 4 answers scored)",
        "pass@k     1: 0.2500, 2: 1.0000",  # for two, only the first group has two
        "right      one answer 50.0%, majority 100.0%, weighted 100.0%, best 100.0%, any answer 100.0%",
    ]
    graded = summary([a_group(["a", "b"], [0.5, 1.5])], judged=True)
    assert graded.splitlines()[1] == "best of k  1: 1.0000, 2: 1.5000"
    assert summary([a_group(["a"], [None])], judged=True) == "no reward (0 of 1 answers scored)"
    assert summary([a_group(["a"], [None])], judged=False) == ""
