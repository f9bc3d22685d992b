"""The KL term's estimators: values and gradients against closed forms, samples, and published formulas.

A policy is a softmax over six tokens, so that every mean over what it samples is a sum, and the divergences
and their gradients are known. `docs/objective.md` says what is held here.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from rs_aligner.config.objective import KLEstimator
from rs_aligner.log_ratio import KL_ESTIMATORS, MAX_LOG_RATIO, kl_estimate
from rs_aligner.loss import kl_to_reference

STRAIGHT_THROUGH = ("k1+", "kl+", "k3+", "low_var_kl+", "abs+")
ALL = (*KL_ESTIMATORS, *STRAIGHT_THROUGH)


def policies(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of the policy, and log-probabilities of the reference; float64."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(-1)


def of_tokens(log_probs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """The estimate at each token, through the loss that is trained on."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    return torch.stack(
        [
            kl_to_reference(p.view(1, 1), q.view(1, 1), mask, 1, estimator=estimator)
            for p, q in zip(log_probs, reference, strict=True)
        ]
    )


def mean_over_samples(estimator: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exactly: the mean value over what the policy samples, and the mean gradient by its logits."""
    logits, reference = policies(seed)
    log_probs = logits.log_softmax(-1)
    mean = (log_probs.exp().detach() * of_tokens(log_probs, reference, estimator)).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return mean.detach(), gradient


def divergence(*, reverse: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """KL(policy || reference), or the reverse, and its gradient by the policy's logits."""
    logits, reference = policies(seed)
    p = logits.detach().softmax(-1)
    q, log_ratio = reference.exp(), logits.detach().log_softmax(-1) - reference
    if reverse:
        return (q * -log_ratio).sum(), p - q
    kl = (p * log_ratio).sum()
    return kl, p * (log_ratio - kl)


@pytest.mark.parametrize("estimator", ["k1", "kl", "k3", "low_var_kl", "k1+", "k3+"])
def test_the_mean_of_k1_and_k3_is_the_divergence(estimator: str) -> None:
    for seed in range(5):
        torch.testing.assert_close(mean_over_samples(estimator, seed)[0], divergence(seed=seed)[0])


@pytest.mark.parametrize("estimator", ["k2", "mse", *STRAIGHT_THROUGH])
def test_the_mean_gradient_of_k2_is_that_of_the_divergence(estimator: str) -> None:
    for seed in range(5):
        torch.testing.assert_close(mean_over_samples(estimator, seed)[1], divergence(seed=seed)[1])


def test_the_mean_gradient_of_k3_is_that_of_the_reverse_divergence_and_of_k1_there_is_none() -> None:
    for seed in range(5):
        reverse, forward = divergence(reverse=True, seed=seed)[1], divergence(seed=seed)[1]
        torch.testing.assert_close(mean_over_samples("k3", seed)[1], reverse)
        assert (reverse - forward).norm() > 0.1 * forward.norm()  # so the two can be told apart
        torch.testing.assert_close(
            mean_over_samples("k1", seed)[1], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("estimator", ["k1", "k3", "k1+", "k3+"])
def test_over_samples_it_comes_to_the_same_within_their_error(estimator: str) -> None:
    logits, reference = policies(1)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.multinomial(logits.detach().softmax(-1), 20_000, replacement=True, generator=generator)
    log_probs = logits.log_softmax(-1)[drawn]
    mask = torch.ones(len(drawn), 1, dtype=torch.bool)
    estimate = kl_to_reference(
        log_probs[:, None], reference[drawn][:, None], mask, len(drawn), estimator=estimator
    )
    values = kl_estimate(reference[drawn] - log_probs.detach(), estimator)
    error = values.std() / math.sqrt(len(drawn))
    assert abs(estimate - divergence(seed=1)[0]) < 4 * error
    (gradient,) = torch.autograd.grad(estimate, logits)
    wanted = {"k1": torch.zeros(6), "k3": divergence(reverse=True, seed=1)[1]}
    expected = wanted.get(estimator, divergence(seed=1)[1])
    assert (gradient - expected).norm() < 0.05


def verl(log_prob: Tensor, reference: Tensor, name: str) -> Tensor:
    """`kl_penalty` as verl documents it, written out: the forms, and the straight-through trick of `+`."""
    half_square = 0.5 * (log_prob - reference) ** 2
    forms = {
        "k1": log_prob - reference,
        "abs": (log_prob - reference).abs(),
        "k2": half_square,
        "k3": torch.exp(reference - log_prob) - (reference - log_prob) - 1,
    }
    same = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
    value = forms[same.get(name.removesuffix("+"), name.removesuffix("+"))]
    return half_square - half_square.detach() + value.detach() if name.endswith("+") else value


def trl(log_prob: Tensor, reference: Tensor) -> Tensor:
    """The per-token KL of TRL's GRPO trainer, written out."""
    return torch.exp(reference - log_prob) - (reference - log_prob) - 1


@pytest.mark.parametrize("estimator", ALL)
def test_values_and_gradients_are_those_of_the_published_formulas(estimator: str) -> None:
    ours = torch.linspace(-9, -0.1, 40, dtype=torch.float64).requires_grad_()
    reference = torch.linspace(-0.2, -8, 40, dtype=torch.float64)
    value, wanted = of_tokens(ours, reference, estimator), verl(ours, reference, estimator)
    torch.testing.assert_close(value, wanted)
    gradients = [torch.autograd.grad(one.sum(), ours, retain_graph=True)[0] for one in (value, wanted)]
    torch.testing.assert_close(*gradients)
    if estimator == "k3":
        torch.testing.assert_close(value, trl(ours, reference))


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_vanishes_nowhere_and_is_finite(estimator: str, dtype: torch.dtype) -> None:
    """However far the policy is from the start, the term draws it back there (k1 goes one way, always)."""
    far = [-900.0, -80.0, -25.0, -21.0, -20.0, -3.0, 3.0, 20.0, 21.0, 25.0, 80.0, 900.0]
    reference = torch.full((1, len(far)), -1000.0, dtype=dtype)
    ours = (reference.float() - torch.tensor([far])).to(dtype).requires_grad_()
    mask = torch.ones(1, len(far), dtype=torch.bool)
    kl_to_reference(ours, reference, mask, 1, "token", estimator=estimator).backward()
    gradient = ours.grad[0].float()
    assert torch.isfinite(gradient).all()
    assert (gradient.abs() >= 0.9).all()
    if estimator not in ("k1", "kl"):
        # Less likely than at the start (d > 0): a step down the gradient makes it more likely.
        assert torch.equal(gradient.sign(), -torch.tensor(far).sign())


def test_k3_goes_on_along_its_tangent() -> None:
    at = torch.tensor([MAX_LOG_RATIO, MAX_LOG_RATIO + 5], dtype=torch.float64)
    difference = at.clone().requires_grad_()
    value = kl_estimate(difference, "k3")
    slope = math.exp(MAX_LOG_RATIO) - 1
    torch.testing.assert_close(value[1] - value[0], torch.tensor(5 * slope, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), difference)
    torch.testing.assert_close(gradient, torch.full((2,), slope, dtype=torch.float64))  # at the bound, too


def test_the_config_offers_what_there_is() -> None:
    assert set(get_args(KLEstimator)) == set(ALL)
    for name in ("k4", "k2+", "mse+", "", "+"):
        with pytest.raises(ValueError, match="estimator must be one of k1, kl, k2"):
            kl_estimate(torch.zeros(1), name)
