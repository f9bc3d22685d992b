"""The nouns: what they are unless said otherwise, how long they are, what may be compared."""

from __future__ import annotations

import math

import pytest

from rs_aligner.rollout import (
    PREFILLED,
    Group,
    PreferencePair,
    Prompt,
    Rollout,
    Score,
    ScoreFailure,
    TrainingRow,
)


def test_what_is_not_said_of_a_prompt_a_rollout_or_a_row() -> None:
    prompt = Prompt("a", "text", (1,))
    assert (prompt.metadata, prompt.position, prompt.row) == ({}, 0, -1)
    rollout = Rollout(0, 0, (1,), "", "stop")
    assert (rollout.policy_version, rollout.seed, rollout.log_probs, rollout.by_design) == (0, 0, (), True)
    row = TrainingRow((1,), (2,))
    assert (row.weight, row.sampled_log_probs, row.reference_log_probs) == (1.0, (), ())
    score = Score(0.5)
    assert (score.components, score.judge, score.precision) == ({}, "", "float64")
    assert Group(prompt, [], []).watched == []
    assert PREFILLED == "prefilled"  # a key of files that people write


def test_a_row_is_as_long_as_its_parts_and_a_pair_as_its_longer_answer() -> None:
    assert len(TrainingRow((1, 2), (3, 4, 5))) == 5
    assert len(PreferencePair((1, 2), (3,))) == len(PreferencePair((1,), (2, 3))) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_refused_by_the_name_of_its_part(bad: float) -> None:
    with pytest.raises(ValueError, match=f"reward is {bad}"):
        Score(bad)
    with pytest.raises(ValueError, match=f"style is {bad}"):
        Score(1.0, {"length": 0.0, "style": bad})


def test_scores_are_equal_whoever_gave_them() -> None:
    assert Score(1.0, {"a": 2.0}, judge="x", precision="float32") == Score(1.0, {"a": 2.0}, judge="y")
    assert Score(1.0) != Score(2.0)
    assert Score(1.0, {"a": 2.0}) != Score(1.0)


def test_a_bar_is_compared_in_the_judges_type() -> None:
    near = 0.7 - 1e-9
    assert Score(near, precision="float32").reaches(0.7)
    assert not Score(near).reaches(0.7)
    assert not Score(0.7 + 1e-9, precision="float32").exceeds(0.7)
    assert Score(0.7 + 1e-9).exceeds(0.7)
    assert Score(0.7).reaches(0.7)
    assert not Score(0.7).exceeds(0.7)
    assert not Score(0.5).reaches(0.7)
    assert Score(0.9).exceeds(0.7)


def test_a_part_of_a_group_keeps_what_both_judges_said() -> None:
    rollouts = [Rollout(0, n, (n,), str(n), "stop") for n in range(3)]
    scores = [Score(0.0), ScoreFailure("no"), Score(2.0)]
    group = Group(Prompt("a", "text", (1,)), rollouts, list(scores))
    part = group.only([2, 1])
    assert (part.prompt, part.rollouts) == (group.prompt, [rollouts[2], rollouts[1]])
    assert (part.scores, part.watched) == ([scores[2], scores[1]], [])
    assert group.watched_scores() == [ScoreFailure("not watched")] * 3
    group.watched = [Score(5.0), Score(6.0), ScoreFailure("no")]
    assert group.only([0, 2]).watched == [Score(5.0), ScoreFailure("no")]
    assert group.watched_scores() == group.watched
