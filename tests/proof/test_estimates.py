"""Closed forms against the enumeration of all subsets, and against values known by hand."""

from __future__ import annotations

import math
from itertools import combinations, product
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.proof.estimates import (
    best_of_k,
    pass_at_k,
    powers_of_two,
    random_choice,
    reported_ks,
    top_k_divergence,
)

# Few different values, so that ties are common.
scores = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 7.25]) | st.floats(-100, 100), min_size=1)


@given(scores.filter(lambda s: len(s) <= 8))
def test_best_of_k_is_the_mean_of_the_maxima_of_all_subsets(rewards):
    ks = range(1, len(rewards) + 1)
    expected = [fmean(max(subset) for subset in combinations(rewards, k)) for k in ks]
    np.testing.assert_allclose(best_of_k(rewards, ks), expected, rtol=1e-9, atol=1e-9)


def test_best_of_k_by_hand():
    # Of {1, 2, 4} the pairs' maxima are 2, 4, 4.
    np.testing.assert_allclose(best_of_k([4.0, 1.0, 2.0], [1, 2, 3]), [7 / 3, 10 / 3, 4.0])
    assert best_of_k([1.0], []).shape == (0,)


@given(scores)
def test_best_of_k_rises_from_the_mean_to_the_maximum(rewards):
    table = best_of_k(rewards, range(1, len(rewards) + 1))
    assert table[0] == pytest.approx(fmean(rewards), rel=1e-9, abs=1e-9)
    assert table[-1] == max(rewards)
    assert (np.diff(table) >= -1e-9 * max(1.0, *map(abs, rewards))).all()


def test_best_of_k_of_thousands_neither_overflows_nor_drifts():
    uniform = [(i + 0.5) / 5000 for i in range(5000)]
    ks = [1, 10, 100, 4999, 5000]
    np.testing.assert_allclose(best_of_k(uniform, ks), [k / (k + 1) for k in ks], atol=2e-4)


@pytest.mark.parametrize("ks", [[0], [4], [1, 9]])
def test_best_of_k_refuses_sizes_that_cannot_be_drawn(ks):
    with pytest.raises(ValueError, match="from 1 to the 3 scores"):
        best_of_k([1.0, 2.0, 3.0], ks)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_in_which_one_passes(passed, data):
    k = data.draw(st.integers(1, len(passed)))
    expected = fmean(any(subset) for subset in combinations(passed, k))
    assert pass_at_k(len(passed), sum(passed), k) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.data())
def test_best_of_k_of_zeros_and_ones_is_pass_at_k(passed, data):
    k = data.draw(st.integers(1, len(passed)))
    assert best_of_k([float(p) for p in passed], [k])[0] == pytest.approx(
        pass_at_k(len(passed), sum(passed), k), abs=1e-12
    )


@pytest.mark.parametrize(("num", "num_passed", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_numbers_that_do_not_fit(num, num_passed, k):
    with pytest.raises(ValueError, match="needs 0 <= c <= n"):
        pass_at_k(num, num_passed, k)


small_group = st.lists(st.floats(-10, 10), min_size=1, max_size=4)


@given(st.lists(small_group, min_size=1, max_size=3), st.data())
def test_the_random_choice_has_the_mean_and_deviation_of_all_choices(groups, data):
    drawn = [data.draw(st.integers(0, len(group))) for group in groups]
    found = random_choice(zip(groups, drawn, strict=True))
    choices = product(*(combinations(group, k) for group, k in zip(groups, drawn, strict=True)))
    means = [fmean(sum(choice, ())) for choice in choices if sum(drawn)]
    if not means:
        assert found is None
        return
    assert found is not None
    # Every choice is as likely as any other, since the sizes are fixed.
    assert found[0] == pytest.approx(fmean(means), abs=1e-9)
    assert found[1] == pytest.approx(pstdev(means), abs=1e-6)


def test_the_random_choice_by_hand():
    # One of {0, 2}: mean 1, deviation 1. All of {5}: no spread. Together over two: mean 3, deviation 1/2.
    assert random_choice([([0.0, 2.0], 1), ([5.0], 1)]) == (3.0, 0.5)
    assert random_choice([([0.0, 2.0], 0)]) is None
    with pytest.raises(ValueError, match="3 cannot be drawn of 2"):
        random_choice([([0.0, 2.0], 3)])


@pytest.mark.parametrize("num", [2, 3, 8, 64, 1000])
def test_the_divergence_of_the_best_of_n_is_the_known_one(num):
    assert top_k_divergence(num, 1) == math.log(num) - (num - 1) / num
    assert top_k_divergence(num, num) == 0.0


def exact_divergence(num: int, num_kept: int, bins: int = 400_000) -> float:
    """By plain summation of p ln p, with the binomial tail added up directly."""
    u = (np.arange(bins) + 0.5) / bins
    tail = sum(math.comb(num - 1, s) * u**s * (1 - u) ** (num - 1 - s) for s in range(num - num_kept, num))
    density = num / num_kept * tail
    return float(np.mean(np.where(density > 0, density * np.log(np.maximum(density, 1e-300)), 0.0)))


@pytest.mark.parametrize(("num", "num_kept"), [(2, 1), (4, 1), (4, 2), (4, 3), (16, 4), (64, 1), (64, 63)])
def test_the_divergence_of_the_top_k_is_the_integral(num, num_kept):
    assert top_k_divergence(num, num_kept) == pytest.approx(exact_divergence(num, num_kept), abs=1e-6)


def test_the_divergence_of_many_is_that_of_a_quantile():
    assert top_k_divergence(4096, 1024) == pytest.approx(math.log(4), abs=0.03)
    falls = [top_k_divergence(16, k) for k in range(1, 17)]
    assert falls == sorted(falls, reverse=True)


def test_tables_are_short_and_end_with_the_largest():
    assert reported_ks(0) == ()
    assert reported_ks(3) == (1, 2, 3)
    assert reported_ks(100) == (*range(1, 17), 32, 64, 100)
    assert powers_of_two(0) == ()
    assert powers_of_two(1) == (1,)
    assert powers_of_two(12) == (1, 2, 4, 8, 12)
