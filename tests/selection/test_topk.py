"""The best of each row: against a brute-force oracle, and the corners of the contract."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rs_aligner.selection import select_topk

# Few distinct values, so that ties are common; -0.0 equals 0.0.
REWARDS = st.sampled_from([-1.5, -0.0, 0.0, 1.0, 1.0 + 2**-23, 3e38])


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Rewards and what was scored of them, with NaN or infinity where the judge failed."""
    num_prompts, num_rollouts = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    rewards, scored = torch.empty(num_prompts, num_rollouts), torch.ones(num_prompts, num_rollouts).bool()
    for prompt in range(num_prompts):
        for rollout in range(num_rollouts):
            scored[prompt, rollout] = draw(st.booleans())
            value = draw(REWARDS if scored[prompt, rollout] else st.sampled_from([math.nan, math.inf, 9.0]))
            rewards[prompt, rollout] = value
    return rewards, scored, draw(st.integers(1, num_rollouts))


def best_by_sorting(rewards: Tensor, scored: Tensor, num_select: int) -> list[list[bool]]:
    keep = []
    for values, flags in zip(rewards.tolist(), scored.tolist(), strict=True):
        eligible = [i for i, flag in enumerate(flags) if flag]
        best = sorted(eligible, key=lambda i: (-values[i], i))[:num_select]
        keep.append([i in best for i in range(len(values))])
    return keep


@given(steps())
def test_keeps_the_best_scored_of_each_row(step):
    rewards, scored, num_select = step
    keep = select_topk(rewards, num_select, scored)
    assert keep.dtype == torch.bool
    assert keep.shape == rewards.shape
    assert keep.tolist() == best_by_sorting(rewards, scored, num_select)


@given(steps())
def test_kept_mean_of_a_row_is_at_least_its_mean(step):
    rewards, scored, num_select = step
    keep = select_topk(rewards, num_select, scored)
    for row, flags, kept in zip(rewards.double(), scored, keep, strict=True):
        if flags.any():
            mean = row[flags].mean().item()
            assert row[kept].mean().item() >= mean - 1e-12 * abs(mean)


def test_ties_go_to_the_lower_index_in_a_long_row():
    keep = select_topk(torch.zeros(2, 1000), 3)
    assert keep.nonzero().tolist() == [[row, index] for row in range(2) for index in range(3)]


def test_negative_zero_ties_with_zero():
    assert select_topk(torch.tensor([[-0.0, 0.0]]), 1).tolist() == [[True, False]]


def test_float64_rewards_are_not_rounded():
    assert select_topk(torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64), 1).tolist() == [[False, True]]


def test_identical_rows_are_two_groups():
    keep = select_topk(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), 1)
    assert keep.tolist() == [[False, True], [False, True]]


def test_keeping_all_keeps_all_that_was_scored():
    scored = torch.tensor([[True, False, True]])
    assert torch.equal(select_topk(torch.rand(1, 3), 3, scored), scored)


def test_does_not_change_its_input():
    rewards, scored = torch.tensor([[2.0, math.nan, 1.0]]), torch.tensor([[True, False, True]])
    select_topk(rewards, 1, scored)
    assert rewards.tolist()[0][::2] == [2.0, 1.0]
    assert scored.tolist() == [[True, False, True]]


@pytest.mark.parametrize("num_select", [0, -1, 4])
def test_refuses_to_keep_none_or_more_than_there_are(num_select):
    with pytest.raises(ValueError, match="num_select must be from 1 to the 3"):
        select_topk(torch.zeros(2, 3), num_select)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_a_score_that_is_not_finite(value):
    rewards = torch.tensor([[0.0, 1.0], [2.0, value]])
    with pytest.raises(ValueError, match="prompt 1, rollout 1"):
        select_topk(rewards, 1)


@pytest.mark.parametrize(
    "scored",
    [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)],
)
def test_refuses_a_scored_mask_that_does_not_fit(scored):
    with pytest.raises(ValueError, match="scored must be boolean"):
        select_topk(torch.zeros(2, 3), 1, scored)


def test_refuses_rewards_that_are_not_rows():
    with pytest.raises(ValueError, match="rewards must be"):
        select_topk(torch.zeros(3), 1)
