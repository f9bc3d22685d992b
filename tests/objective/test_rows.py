"""What a kept rollout weighs, which rows are dropped, and how supervised rows are spread among the others."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.config import ObjectiveConfig, num_anchors
from rs_aligner.objective.rows import (
    advantages,
    mix,
    objective_metrics,
    shuffled_anchors,
    training_rows,
    with_reference,
)
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure, TrainingRow
from rs_aligner.selection import Selection

REWARDS = st.lists(st.none() | st.integers(-5, 5).map(lambda n: n / 10), min_size=1, max_size=8)


def group_of(place: int, rewards: list[float | None]) -> Group:
    rollouts = [
        Rollout(place, i, (10 * place + i, 7), "", "stop", log_probs=(-1.0 - i, -0.5))
        for i in range(len(rewards))
    ]
    scores = [ScoreFailure("no answer") if reward is None else Score(reward) for reward in rewards]
    return Group(Prompt(str(place), "", (place, place)), rollouts, scores)


def keep(*rows: list[int]) -> Selection:
    """The places to keep of each group; as wide as the widest group, of four."""
    mask = torch.zeros(len(rows), 4, dtype=torch.bool)
    for row, places in enumerate(rows):
        mask[row, places] = True
    return Selection(mask, ())


GROUPS = [group_of(0, [1.0, 0.0, None, 0.5]), group_of(1, [0.25, 0.25]), group_of(2, [None, 0.0, 0.0, 0.6])]
ALL = keep([0, 1, 3], [0, 1], [1, 2, 3])


def weights(config: ObjectiveConfig) -> dict[int, float]:
    return {row.response[0]: row.weight for row in training_rows(GROUPS, ALL, config)}


# Advantages


def test_the_plain_recipe_weighs_what_was_kept_with_1_in_order():
    rows = training_rows(GROUPS, keep([3, 1], [0], []), ObjectiveConfig())
    assert rows == [TrainingRow((0, 0), (1, 7)), TrainingRow((0, 0), (3, 7)), TrainingRow((1, 1), (10, 7))]
    assert objective_metrics(GROUPS, ALL, ObjectiveConfig()) == {}


def test_the_groups_advantage_is_that_of_its_scored_rollouts():
    # Mean 0.5 and deviation 0.5 of (1, 0, 0.5); mean 0.2 and deviation sqrt(0.12) of (0, 0, 0.6).
    expected = {0: 1.0, 1: -1.0, 21: -0.2 / 0.12**0.5, 22: -0.2 / 0.12**0.5, 23: 0.4 / 0.12**0.5}
    assert weights(ObjectiveConfig(advantage="group")) == pytest.approx(expected, rel=1e-5)


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    expected = {0: 1.0 - 0.25, 1: 0.0 - 0.75, 21: -0.3, 22: -0.3, 23: 0.6}
    assert weights(ObjectiveConfig(advantage="leave_one_out")) == pytest.approx(expected)


def test_a_baseline_is_that_of_the_whole_group_whoever_was_kept():
    config = ObjectiveConfig(advantage="leave_one_out")
    (row,) = training_rows(GROUPS, keep([0], [], []), config)
    assert row.weight == pytest.approx(0.75)


def test_positives_only_drops_what_is_not_better_than_its_group():
    config = ObjectiveConfig(advantage="group", positives_only=True)
    assert set(weights(config)) == {0, 23}
    assert objective_metrics(GROUPS, ALL, config)["objective/dropped"] == 6


def test_groups_without_signal_and_dropped_rows_are_counted():
    found = objective_metrics(GROUPS, ALL, ObjectiveConfig(advantage="group"))
    assert found == {"objective/groups_without_signal": 1, "objective/dropped": 3}
    lonely = [group_of(0, [1.0, None]), group_of(1, [None, None])]
    found = objective_metrics(lonely, keep([0], []), ObjectiveConfig(advantage="leave_one_out"))
    assert found == {"objective/groups_without_signal": 2, "objective/dropped": 1}


@given(REWARDS, st.sampled_from(["group", "leave_one_out"]))
def test_advantages_sum_to_nothing_and_keep_the_order_of_rewards(rewards, kind):
    found = advantages(rewards, kind)
    assert len(found) == len(rewards)
    pairs = [(r, a) for r, a in zip(rewards, found, strict=True) if r is not None]
    assert all(a == 0 for r, a in zip(rewards, found, strict=True) if r is None)
    assert math.fsum(found) == pytest.approx(0, abs=1e-9)
    if len({r for r, _ in pairs}) < 2:
        assert set(found) <= {0.0}
    else:
        assert all((r > s) == (a > b) for r, a in pairs for s, b in pairs)
        if kind == "leave_one_out":
            for i, (reward, advantage) in enumerate(pairs):
                others = [r for j, (r, _) in enumerate(pairs) if j != i]
                assert advantage == pytest.approx(reward - fmean(others), abs=1e-12)


@given(REWARDS, st.floats(0.1, 100), st.floats(-10, 10))
def test_the_groups_advantage_does_not_depend_on_scale_or_offset(rewards, scale, offset):
    moved = [None if r is None else scale * r + offset for r in rewards]
    assert advantages(moved, "group") == pytest.approx(advantages(rewards, "group"), rel=1e-3, abs=1e-3)


def test_rows_have_the_samplers_log_probabilities_where_ratios_are_clipped():
    clipped = training_rows(GROUPS, keep([1], [], []), ObjectiveConfig(advantage="group", clip=0.2))
    assert [row.sampled_log_probs for row in clipped] == [(-2.0, -0.5)]
    plain = training_rows(GROUPS, keep([1], [], []), ObjectiveConfig(advantage="group"))
    assert [row.sampled_log_probs for row in plain] == [()]


def test_rows_bring_what_the_decoder_noted_where_the_policys_version_sampled_them():
    group, config = group_of(0, [1.0] * 4), ObjectiveConfig()
    whole = group.rollouts[0]
    group.rollouts[1] = replace(whole, policy_version=2)
    group.rollouts[2] = replace(whole, policy_version=2, log_probs=(-1.0,))
    group.rollouts[3] = replace(whole, policy_version=2, log_probs=(-1.0, -math.inf))
    every, noted = keep([0, 1, 2, 3]), whole.log_probs
    assert noted

    def brought(version: int | None) -> list[tuple[float, ...]]:
        rows = training_rows([group], every, config, version=version)
        return [row.decoder_log_probs for row in rows]

    assert brought(0) == [noted, (), (), ()]
    assert brought(2) == [(), noted, (), ()]
    assert brought(None) == [()] * 4


def test_a_rollout_without_log_probabilities_cannot_have_clipped_ratios():
    group = group_of(0, [1.0, 0.0])
    group.rollouts[1] = Rollout(0, 1, (1, 2, 3), "", "stop", log_probs=(-1.0,))
    with pytest.raises(ValueError, match=r"objective\.clip needs .* rollout 1 of group 0 has 1 for 3 tokens"):
        training_rows([group], keep([0, 1]), ObjectiveConfig(advantage="group", clip=0.2))


def test_the_reference_goes_to_its_row():
    rows = training_rows(GROUPS, keep([0, 1], [], []), ObjectiveConfig())
    found = with_reference(rows, [(-1.0, -2.0), (-3.0, -4.0)])
    assert [row.reference_log_probs for row in found] == [(-1.0, -2.0), (-3.0, -4.0)]
    assert [row.response for row in found] == [row.response for row in rows]
    with pytest.raises(ValueError, match="shorter"):
        with_reference(rows, [(-1.0, -2.0)])


# Supervised rows


def rows_of(first: int, count: int) -> list[TrainingRow]:
    return [TrainingRow((first + i,), (0,)) for i in range(count)]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 90).map(lambda n: n / 100), st.integers(0, 8))
def test_supervised_rows_are_spread_evenly_and_taken_in_order(num_rows, num_files, share, start):
    rows, anchors = rows_of(0, num_rows), rows_of(1000, num_files)
    start %= num_files
    mixed, end = mix(rows, anchors, share, start)
    assert [row for row in mixed if row.prompt[0] < 1000] == rows
    taken = [row for row in mixed if row.prompt[0] >= 1000]
    assert taken == [anchors[(start + i) % num_files] for i in range(len(taken))]
    assert end == (start + len(taken)) % num_files
    if not rows:
        assert not mixed
        return
    assert len(taken) == num_anchors(num_rows, share) >= 1
    assert len(taken) == 1 or abs(len(taken) - share * len(mixed)) <= 0.5 + share / 2
    is_anchor = [row.prompt[0] >= 1000 for row in mixed]
    density = len(taken) / len(mixed)
    for size in (1, 3, 16):
        for first in range(0, len(mixed), size):
            batch = is_anchor[first : first + size]
            assert abs(sum(batch) - density * len(batch)) < 1


def test_going_on_from_where_the_step_before_ended_is_one_pass():
    anchors = rows_of(1000, 7)
    first, place = mix(rows_of(0, 6), anchors, 0.25, 0)
    second, place = mix(rows_of(10, 9), anchors, 0.25, place)
    taken = [row for row in [*first, *second] if row.prompt[0] >= 1000]
    assert taken == anchors[:5]
    assert place == 5


def test_without_a_share_nothing_is_mixed_in():
    assert mix(rows_of(0, 3), [], 0.0, 0) == (rows_of(0, 3), 0)
    assert mix(rows_of(0, 3), rows_of(1000, 5), 0.0, 4) == (rows_of(0, 3), 4)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be at least 0 and below 1"):
        mix(rows_of(0, 3), rows_of(1000, 5), share, 0)


def test_a_share_without_rows_to_take_is_refused():
    with pytest.raises(ValueError, match=r"objective\.anchor: there are no rows"):
        mix(rows_of(0, 3), [], 0.1, 0)


def test_anchors_are_shuffled_the_same_in_every_run_and_have_their_weight():
    rows = rows_of(0, 30)
    one, again, other = (shuffled_anchors(rows, 0.5, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert sorted(row.prompt for row in one) == [row.prompt for row in rows]
    assert {row.weight for row in one} == {0.5}
