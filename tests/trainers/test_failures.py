"""When a judge has failed too much to go on, and how that is told."""

from __future__ import annotations

import logging

import pytest

from rs_aligner.config import RemoteRMConfig
from rs_aligner.rollout import Group, Prompt, Score, ScoreFailure
from rs_aligner.trainers.failures import count_reasons, judge_failure


def groups(*rows: str) -> list[Group]:
    """A group for each row; a letter is the reason of a failure, a dot a score."""
    return [
        Group(Prompt(row, "", (1,)), [], [Score(1.0) if one == "." else ScoreFailure(one) for one in row])
        for row in rows
    ]


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ("a", "1 x a"),
        ("baa", "1 x b, 2 x a"),
        ("abcde", "1 x a, 1 x b, 1 x c, 1 x d, 1 x e"),
        ("abbcccddddeeeeeffffff", "6 x f, 5 x e, 4 x d, 3 x c, 2 x b, 1 x other reasons"),
        ("gabbcccddddeeeeeffffff", "6 x f, 5 x e, 4 x d, 3 x c, 2 x b, 2 x other reasons"),
    ],
)
def test_reasons_are_counted_and_of_many_the_most_frequent_are_told(reasons: str, told: str) -> None:
    assert count_reasons(list(reasons)) == told


@pytest.mark.parametrize(
    ("rows", "how", "failure"),
    [
        ([], {}, None),
        (["..", "."], {}, None),
        (["..", "."], {"on_failure": "abort"}, None),
        (
            ["ab", ""],
            {"max_failed_fraction": 1.0},
            "step 7: the judge scored none of 2 rollouts: 1 x a, 1 x b",
        ),
        (
            ["a.", ".."],
            {"on_failure": "abort"},
            "step 7: 1 of 4 rollouts have no score, and remote_rm.on_failure is abort: 1 x a",
        ),
        (["a.", ".."], {"max_failed_fraction": 0.25}, None),
        (
            ["a.", ".b"],
            {"max_failed_fraction": 0.25},
            "step 7: 2 of 4 rollouts have no score, more than remote_rm.max_failed_fraction = 0.25 of them: "
            "1 x a, 1 x b",
        ),
    ],
)
def test_a_step_has_enough_scores_or_it_is_said_by_which_rule_it_has_not(
    rows: list[str], how: dict[str, object], failure: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    config = RemoteRMConfig.model_validate(how)
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        assert judge_failure(groups(*rows), config, "step 7") == failure
    is_warned = failure is None and any("a" in row for row in rows)
    assert ("have no score and are rejected: 1 x a" in caplog.text) == is_warned
