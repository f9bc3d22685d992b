"""Weighted likelihood, clipped ratios and the KL term: value and gradient against the written formula.

The plain loss and its mask are in `test_loss.py`; through Megatron, in `policy/test_objective_layouts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rs_aligner.loss import (
    MAX_LOG_RATIO,
    Normalization,
    clipped_surrogate,
    clipped_tokens,
    kl_to_reference,
    masked_nll,
)

LOW, HIGH = 0.2, 0.3
NORMALIZATIONS = ("sequence", "token")
SPOILERS = (0.0, math.nan, math.inf, -math.inf, 1e30)


class Batch:
    """Float64 log-probabilities of two policies; masked-out places hold what would spoil a sum."""

    def __init__(self, sizes: list[int], seed: int, spoiler: float, spread: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows, width = len(sizes), 7

        def draw() -> Tensor:
            return torch.randn(rows, width, generator=generator, dtype=torch.float64)

        self.mask = torch.stack([torch.arange(width) >= width - size for size in sizes])
        old = -1 - draw().abs()
        self.other = torch.where(self.mask, old, spoiler)
        self.log_probs = torch.where(self.mask, old + spread * draw(), spoiler).requires_grad_()
        self.weights = draw()[:, 0]

    def denominator(self, normalization: str) -> int:
        return max(1, len(self.mask) if normalization == "sequence" else int(self.mask.sum()))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    spoiler, spread = draw(st.sampled_from(SPOILERS)), draw(st.sampled_from([0.0, 0.1, 1.0]))
    return Batch(sizes, draw(st.integers(0, 1000)), spoiler, spread)


def by_rows(batch: Batch, token: Callable[[Tensor, Tensor, Tensor], Tensor], normalization: str) -> Tensor:
    """`token(log_prob, other, weight)` summed up as the formulas say, from the response tokens only."""
    total = torch.zeros((), dtype=torch.float64)
    for mask, log_probs, other, weight in zip(
        batch.mask, batch.log_probs, batch.other, batch.weights, strict=True
    ):
        values = [token(log_probs[t], other[t], weight) for t in mask.nonzero().flatten().tolist()]
        if values:
            row = torch.stack(values)
            total = total + (row.mean() if normalization == "sequence" else row.sum())
    return total / batch.denominator(normalization)


def assert_same(batch: Batch, value: Tensor, expected: Tensor) -> None:
    assert value.shape == ()
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, batch.log_probs)
    wanted = torch.zeros_like(grad)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad(expected, batch.log_probs)
    assert grad[~batch.mask].eq(0).all()
    torch.testing.assert_close(grad, wanted)


@given(batches(), st.sampled_from(NORMALIZATIONS))
def test_a_weight_multiplies_its_rows_share(batch: Batch, normalization: Normalization) -> None:
    divisor = batch.denominator(normalization)
    loss = masked_nll(batch.log_probs, batch.mask, divisor, normalization, weights=batch.weights)
    assert_same(batch, loss, by_rows(batch, lambda new, old, weight: -weight * new, normalization))


@given(batches(), st.sampled_from(NORMALIZATIONS))
def test_weights_of_one_change_no_bit(batch: Batch, normalization: Normalization) -> None:
    divisor = batch.denominator(normalization)
    plain = masked_nll(batch.log_probs, batch.mask, divisor, normalization)
    ones = torch.ones(len(batch.mask))
    assert torch.equal(plain, masked_nll(batch.log_probs, batch.mask, divisor, normalization, weights=ones))


def surrogate(batch: Batch, normalization: Normalization) -> Tensor:
    return clipped_surrogate(
        *(batch.log_probs, batch.other, batch.weights, batch.mask),
        *(batch.denominator(normalization), normalization),
        clip_low=LOW,
        clip_high=HIGH,
    )


def clipped_token(new: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """Written with branches: the ratio counts until it is beyond the bound that the advantage pushes to."""
    ratio = torch.exp(new - old)
    if advantage > 0 and ratio > 1 + HIGH:
        return -(1 + HIGH) * advantage
    if advantage < 0 and ratio < 1 - LOW:
        return -(1 - LOW) * advantage
    return -ratio * advantage


@given(batches(), st.sampled_from(NORMALIZATIONS))
def test_the_surrogate_is_that_of_the_formula(batch: Batch, normalization: Normalization) -> None:
    assert_same(batch, surrogate(batch, normalization), by_rows(batch, clipped_token, normalization))


@given(batches())
def test_clipped_tokens_are_those_without_a_gradient(batch: Batch) -> None:
    clipped = clipped_tokens(
        *(batch.log_probs, batch.other, batch.weights, batch.mask), clip_low=LOW, clip_high=HIGH
    )
    (grad,) = torch.autograd.grad(surrogate(batch, "token"), batch.log_probs)
    assert torch.equal(clipped, batch.mask & (grad == 0))


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 2.0), (-1.0, 0.5)])
def test_at_the_bounds_themselves_nothing_is_clipped(advantage: float, ratio: float) -> None:
    log_probs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    given = torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool)
    loss = clipped_surrogate(log_probs, *given, 1, "token", clip_low=0.5, clip_high=1.0)
    (grad,) = torch.autograd.grad(loss, log_probs)
    assert grad.item() == -ratio * advantage
    assert not clipped_tokens(log_probs, *given, clip_low=0.5, clip_high=1.0).any()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_on_policy_the_surrogates_gradient_is_that_of_the_weighted_likelihood(
    normalization: Normalization,
) -> None:
    batch = Batch([3, 0, 7, 1], seed=3, spoiler=math.nan, spread=0.0)
    for weights in (torch.ones(4, dtype=torch.float64), batch.weights):
        batch.weights = weights
        (grad,) = torch.autograd.grad(surrogate(batch, normalization), batch.log_probs)
        divisor = batch.denominator(normalization)
        nll = masked_nll(batch.log_probs, batch.mask, divisor, normalization, weights=weights)
        assert nll.item() != 0
        torch.testing.assert_close(grad, torch.autograd.grad(nll, batch.log_probs)[0], rtol=1e-12, atol=0)
    plain = masked_nll(batch.log_probs, batch.mask, divisor, normalization)
    batch.weights = torch.ones(4, dtype=torch.float64)
    (grad,) = torch.autograd.grad(surrogate(batch, normalization), batch.log_probs)
    torch.testing.assert_close(grad, torch.autograd.grad(plain, batch.log_probs)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("advantage", "difference", "expected"),
    [
        (1.0, 900, -(1 + HIGH)),
        (1.0, -900, 0.0),
        (-1.0, 900, math.exp(MAX_LOG_RATIO)),
        (-1.0, -900, 1 - LOW),
    ],
)
def test_a_ratio_beyond_all_bounds_leaves_loss_and_gradient_finite(
    advantage: float, difference: float, expected: float
) -> None:
    old = torch.full((1, 2), -1000.0)
    new = (old + difference).requires_grad_()
    mask, advantages = torch.ones(1, 2, dtype=torch.bool), torch.tensor([advantage])
    loss = clipped_surrogate(new, old, advantages, mask, 1, clip_low=LOW, clip_high=HIGH)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert torch.isfinite(new.grad).all()


@given(batches(), st.sampled_from(NORMALIZATIONS))
def test_the_kl_term_is_that_of_the_formula(batch: Batch, normalization: Normalization) -> None:
    value = kl_to_reference(
        batch.log_probs, batch.other, batch.mask, batch.denominator(normalization), normalization
    )
    expected = by_rows(batch, lambda new, old, _: torch.exp(old - new) - (old - new) - 1, normalization)
    assert value >= 0
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)
    assert_same(batch, value, expected)


def test_the_kl_term_estimates_the_divergence_of_two_distributions() -> None:
    """Its mean over all tokens, weighed by the policy's probabilities, is the divergence itself."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    mask = torch.ones(1, 1, dtype=torch.bool)
    estimate = sum(
        p.exp() * kl_to_reference(p.view(1, 1), q.view(1, 1), mask, 1)
        for p, q in zip(policy, reference, strict=True)
    )
    assert exact > 0.1
    torch.testing.assert_close(estimate, exact)


def test_the_kl_term_vanishes_where_the_policies_agree_even_in_float32() -> None:
    log_probs = torch.full((1, 3), -3.0, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = kl_to_reference(log_probs, log_probs.detach() + 1e-5, mask, 1)
    value.backward()
    assert 0 < value.item() < 1e-9
    assert log_probs.grad.abs().max() < 1e-4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_no_term_depends_on_the_split(normalization: Normalization) -> None:
    batch = Batch([3, 0, 7, 1], seed=5, spoiler=math.nan)
    divisor = batch.denominator(normalization)

    def loss(rows: slice) -> Tensor:
        new, old, weights, mask = (x[rows] for x in (batch.log_probs, batch.other, batch.weights, batch.mask))
        total = kl_to_reference(new, old, mask, divisor, normalization)
        total = total + masked_nll(new, mask, divisor, normalization, weights=weights)
        return total + clipped_surrogate(
            new, old, weights, mask, divisor, normalization, clip_low=LOW, clip_high=HIGH
        )

    whole = loss(slice(None))
    parts = sum(loss(slice(start, start + 1)) for start in range(4))
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(
        torch.autograd.grad(whole, batch.log_probs), torch.autograd.grad(parts, batch.log_probs)
    )


def test_no_gradient_flows_into_the_other_policy() -> None:
    batch = Batch([4, 2], seed=1, spoiler=0.0)
    other = batch.other.clone().requires_grad_()
    batch.other = other
    (surrogate(batch, "sequence") + kl_to_reference(batch.log_probs, other, batch.mask, 2)).backward()
    assert other.grad is None
    assert batch.log_probs.grad.abs().max() > 0


def test_what_does_not_fit_is_refused() -> None:
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for rows in (1, 3):
        with pytest.raises(ValueError, match=r"weights must be \[B\] = \[2\]"):
            masked_nll(values, mask, 1, weights=torch.ones(rows))
    with pytest.raises(ValueError, match="sampled_log_probs and mask must both be"):
        clipped_surrogate(*(values, torch.zeros(2, 4), torch.ones(2), mask, 1), clip_low=LOW, clip_high=HIGH)
    with pytest.raises(ValueError, match=r"advantages must be \[B\]"):
        clipped_surrogate(*(values, values, torch.ones(2, 1), mask, 1), clip_low=LOW, clip_high=HIGH)
    with pytest.raises(ValueError, match="clip_low and clip_high must be above zero"):
        clipped_surrogate(*(values, values, torch.ones(2), mask, 1), clip_low=0.0, clip_high=HIGH)
    with pytest.raises(ValueError, match="reference_log_probs and mask must both be"):
        kl_to_reference(values, torch.zeros(1, 3), mask, 1)
    with pytest.raises(ValueError, match="denominator must be above zero"):
        kl_to_reference(values, values, mask, 0)
    with pytest.raises(ValueError, match="normalization must be"):
        # A wrong value on purpose.
        kl_to_reference(values, values, mask, 1, "batch")  # type: ignore[arg-type]  # on purpose
