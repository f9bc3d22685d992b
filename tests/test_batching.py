"""Rows become batches that are as few as may be and as equal as can be, whatever trains on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.batching import even_batches, is_few
from rs_aligner.data import DataOrder
from rs_aligner.objective.rows import mix
from rs_aligner.rollout import TrainingRow


@given(count=st.integers(0, 300), most=st.integers(1, 70))
def test_as_few_batches_as_may_be_whose_sizes_differ_by_at_most_one_in_the_rows_order(count, most):
    batches = even_batches(range(count), most)
    sizes = [len(batch) for batch in batches]
    assert [row for batch in batches for row in batch] == list(range(count))
    assert len(batches) == -(-count // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)


@pytest.mark.parametrize(("count", "sizes"), [(65, [33, 32]), (64, [64]), (130, [44, 43, 43]), (1, [1])])
def test_one_row_too_many_is_no_batch_of_its_own(count, sizes):
    assert [len(batch) for batch in even_batches(range(count), 64)] == sizes


@given(rows=st.integers(1, 40), most=st.integers(1, 50), stop=st.integers(0, 60), then=st.integers(1, 50))
def test_the_draws_of_an_epoch_are_batches_too(rows, most, stop, then):
    sampler = DataOrder(rows, most, seed=1, even=True)
    for _ in range(2):
        sizes = [len(next(sampler)) for _ in range(sampler.steps_per_epoch)]
        assert sizes == [len(batch) for batch in even_batches(range(rows), most)]
    # A run that goes on with another batch size has as equal ones for what is left of the epoch.
    for _ in range(stop):
        next(sampler)
    state, resumed = sampler.state_dict(), DataOrder(rows, then, seed=1, even=True)
    resumed.load_state_dict(state)
    sizes = [len(batch) for batch in even_batches(range(rows - state["position"]), then)]
    assert [len(next(resumed)) for _ in sizes] == sizes


def test_supervised_rows_are_spread_over_batches_that_are_cut_evenly():
    mine = [TrainingRow((1,), (2,))] * 49
    mixed, _ = mix(mine, [TrainingRow((9,), (9,), 3.0)], 0.25, 0)
    assert len(mixed) == 65
    assert [sum(row.weight == 3.0 for row in batch) for batch in even_batches(mixed, 64)] == [8, 8]


def test_few_rows_are_fewer_than_a_tenth_of_a_batch() -> None:
    assert is_few(6, 64)
    assert not is_few(7, 64)
    assert not is_few(10, 100)  # a tenth is not fewer than a tenth
    assert not is_few(0, 64)  # no optimizer step at all, which is said elsewhere
