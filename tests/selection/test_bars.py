"""Selectors that look at rewards, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.config import RFTConfig
from rs_aligner.selection import Progress, build_chain, select_topk
from rs_aligner.selection.bars import Percentile, quantile, share
from tests.selection.steps import chain, group, kept, select, steps

TEN = group([float(n) for n in range(10)])


def test_the_best_of_each_group_whatever_its_size():
    groups = [group([1.0, 3.0, 2.0, 3.0]), group([]), group([5.0]), group([None, -1.0])]
    assert select(groups, {"name": "topk", "k": 2}) == [[1, 3], [], [0], [1]]
    assert select(groups, {"name": "topk"}) == [[1], [], [0], [1]]
    assert select([group([]), group([])], {"name": "topk"}) == [[], []]
    assert select([], {"name": "topk"}) == []


def test_topk_without_k_takes_top_n_rollouts():
    made = chain({"name": "topk"}, top_n=3)
    assert kept(made.select([TEN], Progress(1, 1))) == [[7, 8, 9]]


@settings(max_examples=50)
@given(groups=steps(), k=st.integers(1, 6))
def test_topk_is_the_tensor_function_of_each_group_by_itself(groups, k):
    import torch

    from rs_aligner.rollout import Score

    expected = []
    for one in groups:
        size = len(one.rollouts)
        scored = torch.tensor([[isinstance(score, Score) for score in one.scores]]).bool().view(1, size)
        rewards = torch.tensor([[getattr(score, "reward", 9.0) for score in one.scores]]).view(1, size)
        mask = select_topk(rewards, min(k, size), scored) if size else scored
        expected.append(mask[0].nonzero().flatten().tolist())
    assert select(groups, {"name": "topk", "k": k}) == expected


@pytest.mark.parametrize(
    ("improve_step", "num", "least"),
    # p of 0.5, 0.75 and 1 of rewards 0 to 9: 4.5, 6.75 and 9.
    [(0, 3, 5), (1, 3, 7), (2, 3, 9), (0, 1, 9)],
)
def test_the_percentile_rises_in_equal_steps_and_its_end_is_reached(improve_step, num, least):
    progress = Progress(1, 5, improve_step, num)
    chosen = select([TEN], {"name": "percentile", "start": 0.5, "end": 1.0}, progress=progress)
    assert chosen == [list(range(least, 10))]


def test_the_percentile_of_trlx_is_reached_at_the_last_pass():
    bar = Percentile(0.7, 0.95)
    heights = [bar.percentile(Progress(1, 1, t, 4)) for t in range(4)]
    assert heights == pytest.approx([0.7, 0.78333333, 0.86666667, 0.95])
    assert heights[-1] == 0.95


@pytest.mark.parametrize(("step", "p"), [(1, 0.0), (2, 0.25), (5, 1.0)])
def test_the_percentile_rises_over_the_run_when_asked(step, p):
    assert Percentile(0.0, 1.0, over_run=True).percentile(Progress(step, 5, 0, 2)) == p


def test_a_percentile_is_of_each_group_and_of_what_filters_left():
    groups = [group([0.0, 1.0, 2.0, 100.0], truncated=[3]), group([7.0, 7.0]), group([None, 3.0])]
    bar = {"name": "percentile", "start": 0.5, "end": 0.5}
    assert select(groups, bar) == [[2, 3], [0, 1], [1]]
    assert select(groups, {"name": "truncated"}, bar) == [[1, 2], [0, 1], [1]]


def test_the_lowest_reward_of_a_step_is_below_every_bar_where_trlx_would_have_it_so():
    failed, mixed, level = group([0.0] * 3), group([0.0, 0.0, 0.0, 1.0]), group([0.5, 0.5])
    bar = {"name": "percentile", "start": 0.5, "end": 0.5, "above_lowest": True}
    assert select([failed, mixed, level], bar) == [[], [3], [0, 1]]
    assert select([failed, group([0.0])], bar) == [[0, 1, 2], [0]]  # nothing tells them apart
    assert select([group([1.0, 1.0]), group([None])], bar) == [[0, 1], []]
    assert select([group([]), group([None])], bar) == [[], []]
    assert select([], bar) == []


def test_rft_takes_the_percentile_over_all_samples_and_then_duplicates_out():
    # Six times the best answer and once each of four others: of all ten scores the median is 1.0.
    texts = ["best"] * 6 + ["a", "b", "c", "d"]
    step = [group([1.0] * 6 + [0.2, 0.4, 0.6, 0.8], texts), group([0.0] * 10, list("efghijklmn"))]
    rft = RFTConfig(start_percentile=0.5, end_percentile=0.5)
    assert kept(build_chain(rft.selection, top_n=1).select(step, Progress(1, 1))) == [[0], []]
    # With duplicates out first the bar would be 0.6, and the prompt that nobody solved would keep all ten.
    assert select(step, {"name": "duplicates"}, {"name": "percentile", "start": 0.5, "end": 0.5}) == [
        [0, 8, 9],
        list(range(10)),
    ]


@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=9),
    st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_quantile_is_numpys_and_never_above_the_largest(values, p):
    assert quantile(values, p) == pytest.approx(np.quantile(values, p), rel=1e-9, abs=1e-300)
    assert min(values) <= quantile(values, p) <= max(values)


def test_the_quantile_of_huge_numbers_is_a_number():
    assert quantile([-1.7e308, 1.7e308], 0.5) == 0.0


def test_a_threshold_is_reached_and_a_positive_reward_is_above():
    groups = [group([0.0, 0.5, 1.0])]
    assert select(groups, {"name": "threshold", "at_least": 0.5}) == [[1, 2]]
    assert select(groups, {"name": "positive"}) == [[1, 2]]
    assert select(groups, {"name": "positive", "above": 0.5}) == [[2]]


@pytest.mark.parametrize(
    ("rewards", "better"),
    [
        ([3.0, 1.0, 2.0], [0]),
        ([4.0, 1.0, 3.0, 2.0], [0, 2]),
        ([1.0, 1.0, 1.0], []),
        ([0.0, 1.0, 1.0, 1.0], []),
        ([0.0, 0.0, 1.0, 1.0], [2, 3]),
        ([1.0, 1.0 + 2**-52], [1]),  # the mean of the two would be rounded to one of them
        ([5.0], []),
    ],
)
def test_strictly_above_the_median(rewards, better):
    assert select([group(rewards)], {"name": "median"}) == [better]


def test_the_best_share_of_the_whole_step():
    groups = [group([9.0, 8.0, 1.0]), group([7.0, None]), group([2.0, 8.0, 0.0])]
    # 7 have a score; half of them is 3. Two score 8, the earlier prompt's goes first.
    assert select(groups, {"name": "top_fraction", "fraction": 0.5}) == [[0, 1], [], [1]]
    assert select(groups, {"name": "top_fraction", "fraction": 0.3}) == [[0, 1], [], []]
    assert select(groups, {"name": "top_fraction", "fraction": 0.01}) == [[0], [], []]
    assert select(groups, {"name": "top_fraction", "fraction": 1.0}) == [[0, 1, 2], [0], [0, 1, 2]]
    assert select([group([None])], {"name": "top_fraction", "fraction": 0.5}) == [[]]


@pytest.mark.parametrize("number", range(1, 200))
def test_a_share_is_that_of_whole_numbers(number):
    for hundredths in range(1, 101):
        assert share(hundredths / 100, number) == max(1, hundredths * number // 100)


def test_all_keeps_whatever_has_a_score():
    assert select([group([1.0, None, -5.0])], {"name": "all"}) == [[0, 2]]
