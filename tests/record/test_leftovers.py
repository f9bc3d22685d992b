"""What a start with other settings takes back of what an earlier one left behind the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rs_aligner.record.ledger import Ledger, step_name
from rs_aligner.record.leftovers import Leftovers
from rs_aligner.rollout import Group
from tests.record.test_ledger import make_groups, selected, write


def of_version(version: int) -> list[Group]:
    groups = make_groups()
    for group in groups:
        group.rollouts = [replace(rollout, policy_version=version) for rollout in group.rollouts]
    return groups


@pytest.mark.parametrize(
    ("now", "whole", "taken"),
    [
        ("sampled-learnt", {3, 4}, [4, 4]),  # the same: both steps are trained again
        ("sampled-other", set(), [2, 0]),  # the next step's scored rollouts only: the checkpoint sampled them
        ("other-learnt", set(), [0, 0]),
    ],
)
def test_behind_a_change_only_what_would_be_sampled_now_is_taken_back(
    tmp_path: Path, now: str, whole: set[int], taken: list[int]
) -> None:
    before = Ledger(tmp_path, "sampled-learnt")
    for step in (1, 2, 3, 4):
        write(before, step, of_version(step - 1))
    left = Leftovers(Ledger(tmp_path, now), 2)
    assert left.whole == {step_name(step) for step in whole}
    found = [left.rows(step_name(step)) if step_name(step) in left.names else [] for step in (3, 4)]
    assert [len(rows) for rows in found] == taken
    assert {1, 2} <= set(Ledger(tmp_path).steps())  # in the checkpoint, whoever made them


def test_what_servers_with_older_weights_sampled_is_taken_back_too(tmp_path: Path) -> None:
    for step, version in ((3, 2), (4, 2), (5, 4)):
        groups = of_version(version)
        Ledger(tmp_path, "sampled-learnt").append(step, groups, selected(groups), everything=True)
    left = Leftovers(Ledger(tmp_path, "sampled-learnt"), 2)
    assert [{row.policy_version for row in left.rows(step_name(step))} for step in (3, 4, 5)] == [
        {2},
        {2},
        {4},
    ]
    assert [len(left.rows(step_name(step))) for step in (3, 4, 5)] == [4, 4, 4]
