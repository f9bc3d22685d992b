"""What a micro-batch holds beside tokens stays with its row: weights and log-probabilities."""

from __future__ import annotations

import pytest
import torch

from rs_aligner.policy.batches import MIN_PLACES, Split, collate, deal, denominator, micro_batches
from rs_aligner.rollout import TrainingRow

pytestmark = pytest.mark.timeout(60)


def row(prompt: int, response: int, weight: float = 1.0, *, first: float | None = None) -> TrainingRow:
    """A row of so many tokens; with `first`, log-probabilities that count down from it."""
    log_probs = () if first is None else tuple(first - place for place in range(response))
    return TrainingRow(
        tuple(range(10, 10 + prompt)),
        tuple(range(50, 50 + response)),
        weight,
        log_probs,
        tuple(value - 0.5 for value in log_probs),
    )


def test_a_micro_batch_has_the_weights_of_its_rows() -> None:
    batch = collate([row(2, 3, 0.5), row(1, 1, -2.0), row(4, 2, 1.0)], 1)
    assert batch.weights is not None
    assert batch.weights.tolist() == [0.5, -2.0, 1.0]
    assert batch.weights.dtype == torch.float32


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_row_of_another_weight_is_enough(place: int) -> None:
    weights = [1.0, 1.0, 1.0]
    weights[place] = 0.25
    batch = collate([row(2, 3, weight) for weight in weights], 1)
    assert batch.weights is not None
    assert batch.weights.tolist() == weights


def test_rows_that_are_simply_learnt_have_no_weights() -> None:
    assert collate([row(2, 3), row(1, 4)], 1).weights is None


def test_ratios_bring_weights_even_where_all_are_one() -> None:
    """The clipped objective multiplies by them."""
    batch = collate([row(2, 3, first=-1.0), row(1, 4)], 1)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1.0, 1.0]


def test_weights_follow_their_rows_when_these_are_put_in_order_of_length() -> None:
    rows = [row(2, length, weight=float(length)) for length in (7, 1, 5, 3, 2, 6)]
    shares = [micro_batches(rows, Split(2), rank, 2) for rank in range(2)]
    seen = []
    for batch in (batch for share in shares for batch in share):
        lengths = batch.mask.sum(1).tolist()
        weights = batch.weights.tolist() if batch.weights is not None else [1.0] * len(lengths)
        for length, weight in zip(lengths, weights, strict=True):
            if length:
                assert weight == length
                seen.append(length)
    assert sorted(seen) == [1, 2, 3, 5, 6, 7]


def test_log_probabilities_stand_with_their_tokens_and_nothing_elsewhere() -> None:
    rows = [row(3, 2, first=-1.0), row(1, 4, first=-9.0), row(2, 1)]
    batch = collate(rows, 4)
    assert batch.tokens.shape == (1, 16)
    assert batch.sampled is not None
    assert batch.reference is not None
    nan = float("nan")
    expected = torch.tensor([[-1.0, -2.0, nan, nan], [-9.0, -10.0, -11.0, -12.0], [nan] * 4])
    assert torch.equal(batch.sampled.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(batch.reference.nan_to_num(7), (expected - 0.5).nan_to_num(7))
    has_them = torch.tensor([[True], [True], [False]])
    assert torch.equal(batch.sampled.isfinite(), batch.mask & has_them)


@pytest.mark.parametrize("values", [(-1.0,), (-1.0, -1.0, -1.0), (-1.0, float("nan")), (-1.0, float("-inf"))])
def test_log_probabilities_that_do_not_fit_their_response_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="a finite number for each of the 2 response tokens"):
        collate([TrainingRow((1,), (2, 3), sampled_log_probs=values)], 1)


def test_a_micro_batch_moves_to_a_device_with_all_that_it_has() -> None:
    batch = collate([row(2, 3, 0.5, first=-1.0), row(1, 1)], 1).to(torch.device("meta"))
    for part in (batch.tokens, batch.places, batch.mask, batch.weights, batch.sampled, batch.reference):
        assert part is not None
        assert part.device.type == "meta"
    bare = collate([row(2, 3)], 1).to(torch.device("meta"))
    assert (bare.weights, bare.sampled, bare.reference) == (None, None, None)


@pytest.mark.parametrize(
    ("length", "multiple", "lengths"),
    [(1, 1, (1, 1)), (5, 1, (5, 1)), (5, 2, (5, 1)), (5, 4, (5, 1, 2)), (8, 4, (8, 1, 3))],
)
def test_rows_lie_in_a_line_without_padding_between_them(
    length: int, multiple: int, lengths: tuple[int, ...]
) -> None:
    batch = collate([row(1, length - 1), row(1, 0)], multiple)
    assert batch.lengths == lengths
    assert batch.tokens.shape == (1, sum(lengths))
    assert batch.mask.sum(1).tolist() == [length - 1, 0]


@pytest.mark.parametrize(("multiple", "width"), [(1, 2), (2, 2), (4, 4)])
def test_a_micro_batch_without_rows_is_a_row_that_counts_nothing(multiple: int, width: int) -> None:
    batch = collate([], multiple)
    assert batch.tokens.tolist() == [[0] * width]
    assert batch.lengths == (width,)
    assert batch.mask.tolist() == [[False]]
    assert batch.places.tolist() == [0] * MIN_PLACES
    assert batch.tokens.dtype == torch.int64
    assert (batch.weights, batch.sampled, batch.reference) == (None, None, None)


def test_places_count_from_0_and_labels_are_the_tokens_behind() -> None:
    batch = collate([row(2, 1), row(1, 1)], 1)
    assert batch.tokens.tolist() == [[10, 11, 50, 10, 50]]
    assert batch.line.positions(batch.tokens.device).tolist() == [0, 1, 2, 0, 1]
    assert batch.places.tolist() == [1, 3, 0, 0]
    assert batch.labels[0, :2].tolist() == [50, 50]
    assert batch.by_row(torch.tensor([7.0, 8.0, 9.0, 9.0])).tolist() == [[7.0], [8.0]]


def test_what_was_found_at_places_goes_back_to_its_row_and_token() -> None:
    batch = collate([row(2, 1), row(3, 0), row(1, 3)], 1)
    found = batch.by_row(torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0], [4.0, -4.0]]))
    assert found[..., 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 4.0]]
    assert found[..., 1].tolist() == [[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, -3.0, -4.0]]
    empty = collate([row(2, 0), row(3, 0)], 1)
    assert empty.by_row(torch.tensor([9.0] * MIN_PLACES)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("rows", "size", "shares"),
    [
        (["aaaa", "b", "ccc", "dd"], 2, [[["b", "dd"]], [["ccc", "aaaa"]]]),
        (["a", "b", "c"], 1, [[["a"], ["c"]], [["b"], []]]),
        (["a"], 2, [[["a"]], [[]]]),
        ([], 2, [[], []]),
    ],
)
def test_rows_are_dealt_by_length_and_every_replica_gets_as_many_chunks(
    rows: list[str], size: int, shares: list[list[list[str]]]
) -> None:
    assert [deal(rows, Split(size), rank, 2) for rank in range(2)] == shares


def test_rows_of_equal_length_keep_their_order() -> None:
    assert deal(["x", "b", "a"], Split(3), 0, 1) == [["x", "b", "a"]]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 7, 20, 40, 1000])
def test_rows_are_dealt_by_their_tokens_within_the_limit_and_in_balance(tokens: int, replicas: int) -> None:
    rows = ["x" * length for length in (9, 1, 14, 3, 3, 20, 6, 2, 11, 5)]
    shares = [deal(rows, Split(1, tokens), rank, replicas) for rank in range(replicas)]
    assert len({len(share) for share in shares}) == 1
    chunks = [chunk for share in shares for chunk in share]
    assert sorted(row for chunk in chunks for row in chunk) == sorted(rows)
    sums = [sum(map(len, chunk)) for chunk in chunks]
    for chunk, total in zip(chunks, sums, strict=True):
        assert total <= tokens or len(chunk) == 1
    if tokens == 40:
        assert max(sums) - min(sums) <= 11  # about equal: less than the third longest row apart
    if tokens == 1000:
        assert len(chunks) == replicas


def test_nothing_is_dealt_out_where_there_are_no_rows() -> None:
    assert deal([], Split(1, 8), 0, 2) == []


def test_what_a_row_costs_may_be_more_than_its_length() -> None:
    rows = ["aa", "b", "ccc", "d"]
    chunks = deal(rows, Split(1, 8), 0, 1, cost=lambda row: 2 * len(row))
    assert sorted(sum(2 * len(row) for row in chunk) for chunk in chunks) == [6, 8]


def test_a_batch_is_divided_by_its_rows_or_its_response_tokens() -> None:
    rows = [row(2, 3), row(1, 4), row(5, 0)]
    assert denominator(rows, "sequence") == 3
    assert denominator(rows, "token") == 7
