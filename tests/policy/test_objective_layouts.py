"""Each objective's loss and gradient are those of plain torch in every layout, and so is the starting policy.

The reference is `transformers` and plain autograd on the same weights, a row at a time. The ranks run once
for this file and for `test_layouts.py`; the cases are in `objective_cases.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.rollout import TrainingRow
from tests.policy.conftest import FAMILY, LAYOUTS
from tests.policy.entropy_bonus import BONUS
from tests.policy.full_kl import WEIGHT
from tests.policy.layout_program import rows
from tests.policy.objective_cases import NORMALIZATIONS, OBJECTIVES, SPLITS, noted_rows, objective_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
KINDS = ("ordinary", "distributed", "bf16")
Found = dict[str, dict[str, Any]]
Plain = tuple[float, dict[str, float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def hf_model(layouts_folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(layouts_folder / FAMILY, dtype=torch.float32)


def distributions(model: torch.nn.Module, row: TrainingRow) -> torch.Tensor:
    """Log-probabilities of all tokens, at each token of the response: `[T, V]`."""
    tokens = torch.tensor([row.prompt + row.response])
    log_probs: torch.Tensor = model(tokens).logits[0].log_softmax(-1)[len(row.prompt) - 1 : -1]
    return log_probs


def taken(log_probs: torch.Tensor, row: TrainingRow) -> torch.Tensor:
    return log_probs.gather(1, torch.tensor(row.response)[:, None]).squeeze(1)


def all_log_probs(model: torch.nn.Module) -> list[list[float]]:
    with torch.no_grad():
        return [taken(distributions(model, row), row).tolist() for row in rows()]


@pytest.fixture(scope="module")
def plain(hf_model: torch.nn.Module) -> Callable[[str, str], Plain]:
    """`plain_objective` by objective and normalisation, each computed once."""
    batch = {name: objective_rows(name, rows(), all_log_probs(hf_model)) for name in OBJECTIVES}
    return cache(lambda name, normalization: plain_objective(hf_model, batch[name], name, normalization))


def plain_objective(
    model: torch.nn.Module, batch: Sequence[TrainingRow], name: str, normalization: str
) -> Plain:
    """Loss, figures and gradient, each token's loss written with branches and no mask."""
    objective = OBJECTIVES[name]
    divisor = len(batch) if normalization == "sequence" else sum(len(row.response) for row in batch)
    model.zero_grad()
    total, kl, clipped, entropies = 0.0, [], [], []
    for row in batch:
        log_probs = distributions(model, row)
        new = taken(log_probs, row)
        values = []
        for t, token in enumerate(new):
            if row.sampled_log_probs:
                low, high = objective.bounds
                ratio = torch.exp(token - row.sampled_log_probs[t])
                bound = 1 + high if row.weight > 0 else 1 - low
                is_clipped = ratio > bound if row.weight > 0 else ratio < bound
                clipped.append(float(is_clipped))
                value = -row.weight * (bound if is_clipped else ratio)
            else:
                value = -row.weight * token
            if row.reference_log_probs:
                difference = row.reference_log_probs[t] - token
                divergence = torch.exp(difference) - difference - 1
                kl.append(float(divergence))
                if objective.kl_estimator == "k3+":  # that value, and the gradient of half the square
                    half = difference.square() / 2
                    divergence = divergence.detach() + half - half.detach()
                value = value + objective.kl * divergence
            if name == "entropy":
                entropy = torch.distributions.Categorical(logits=log_probs[t]).entropy()
                entropies.append(float(entropy))
                value = value - BONUS * entropy
            values.append(value + 0 * token)
        loss = torch.stack(values).sum() / divisor
        loss = loss / len(values) if normalization == "sequence" else loss
        loss.backward()
        total += float(loss)
    figures = {"kl": sum(kl) / len(kl)} if kl else {}
    if clipped:
        figures["clip_fraction"] = sum(clipped) / len(clipped)
    if entropies:
        figures["entropy"] = sum(entropies) / len(entropies)
    return total, figures, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradient_and_figures_are_those_of_plain_torch(
    layouts: Found,
    plain: Callable[[str, str], Plain],
    layout: str,
    name: str,
    size: str,
    normalization: str,
) -> None:
    loss, grads = layouts[layout][f"objective {name} {normalization} {size}"]
    figures = layouts[layout][f"figures {name} {normalization} {size}"]["figures"]
    expected_loss, expected_figures, expected = plain(name, normalization)
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert figures == pytest.approx(expected_figures, rel=1e-4)
    assert set(grads) == set(expected)
    for parameter, grad in expected.items():
        error = (grads[parameter] - grad).norm() / grad.norm()
        assert error < 1e-5, (parameter, float(error))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_divergence_over_the_whole_vocabulary_is_that_of_plain_torch(
    layouts: Found, layouts_folder: Path, hf_model: torch.nn.Module, layout: str
) -> None:
    """From the starting policy, of one that has made a step, whose weights stay what they were."""
    found = layouts[layout]
    trained = transformers.AutoModelForCausalLM.from_pretrained(layouts_folder / FAMILY, dtype=torch.float32)
    missing = trained.load_state_dict(found["full kl weights"], strict=False)
    assert missing.missing_keys == ["lm_head.weight"]  # tied
    assert missing.unexpected_keys == []
    total, divergences = torch.zeros(()), []
    for row in rows():
        log_p = distributions(trained, row)
        with torch.no_grad():
            log_q = distributions(hf_model, row)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        divergences += kl.tolist()
        total = total + (WEIGHT * kl - taken(log_p, row)).mean() / len(rows())
    total.backward()
    mean = sum(divergences) / len(divergences)
    assert mean > 1e-3
    for size in (1, 4):
        loss, grads = found[f"full kl {size}"]
        assert loss == pytest.approx(float(total), rel=1e-5)
        assert found[f"full kl figures {size}"]["figures"] == {"full_kl": pytest.approx(mean, rel=1e-4)}
        for name, parameter in trained.named_parameters():
            error = (grads[name] - parameter.grad).norm() / parameter.grad.norm()
            assert error < 1e-5, (name, float(error))
    for name, weights in found["full kl weights"].items():
        assert torch.equal(weights, found["full kl weights afterwards"][name]), name


def test_the_cases_have_something_to_clip_and_something_not(plain: Callable[[str, str], Plain]) -> None:
    for name in ("clip", "all"):
        assert 0.1 < plain(name, "token")[1]["clip_fraction"] < 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_objective_leaves_plain_rows_as_they_are(layouts: Found, layout: str) -> None:
    """To the last bit: against the trainer that knows no objective."""
    loss, grads = layouts[layout]["objective none"]
    plain_loss, plain = layouts[layout]["gradient sequence 2"]
    assert loss == plain_loss
    assert all(torch.equal(grads[name], grad) for name, grad in plain.items())


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mismatch_is_that_of_all_tokens_however_they_are_split_and_costs_no_bit_of_the_gradient(
    layouts: Found, hf_model: torch.nn.Module, layout: str, size: str
) -> None:
    _, off = noted_rows(rows(), all_log_probs(hf_model))
    ninety_ninth = sorted(off)[math.ceil(0.99 * len(off)) - 1]
    assert 20 < len(off) < sum(len(row.response) for row in rows())
    assert layouts[layout][f"mismatch {size}"]["figures"] == {
        "mismatch/mean": pytest.approx(sum(off) / len(off), abs=1e-5),
        "mismatch/p99": pytest.approx(ninety_ninth, rel=0.012),
    }
    loss, grads = layouts[layout][f"compared {size}"]
    plain_loss, plain = layouts[layout][f"gradient sequence {size}"]
    assert loss == plain_loss
    assert all(torch.equal(grads[name], grad) for name, grad in plain.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ratios_begin_at_1_and_the_divergence_at_0(layouts: Found, layout: str) -> None:
    """Rollouts just sampled, at another temperature: the decoder and the training pass agree on them."""
    stats = layouts[layout]["first step"]["stats"]
    assert stats.figures["clip_fraction"] == 0
    assert 0 <= stats.figures["kl"] < 1e-8  # a difference of d counts as d^2 / 2


@pytest.mark.parametrize("case", ["at start", "after a step", "of a continued run"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_is_the_starting_policy_whatever_was_trained(
    layouts: Found, hf_model: torch.nn.Module, layout: str, kind: str, case: str
) -> None:
    found = layouts[layout][f"reference {case} {kind}"]["log_probs"]
    assert found == layouts[layout][f"reference at start {kind}"]["log_probs"]
    assert found != layouts[layout][f"trained log_probs {kind}"]["log_probs"]
    expected = all_log_probs(hf_model)
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert list(row) == pytest.approx(wanted, abs=0.2 if kind == "bf16" else 1e-4)


SAME = {
    "looking at the reference changes no weight": ("one step after the reference", "one step"),
    "nor the training that follows": ("two steps beside the reference", "two steps new"),
    "a restart goes back to the start": ("restarted", "start"),
    "and trains as a new policy does": ("two steps restarted", "two steps new"),
    "saved behind a restart": ("two steps restarted and resumed", "two steps new"),
    "saved a step later": ("two steps resumed after one", "two steps new"),
    "restarted in a continued run": ("two steps restarted after a load", "two steps new"),
}


@pytest.mark.parametrize("what", SAME)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_the_same_to_the_last_bit(layouts: Found, layout: str, kind: str, what: str) -> None:
    one, other = (layouts[layout][f"{case} {kind}"] for case in SAME[what])
    assert set(one) == set(other)
    assert all(torch.equal(weights, other[name]) for name, weights in one.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_moves_every_weight(layouts: Found, layout: str, kind: str) -> None:
    start, one, two = (layouts[layout][f"{case} {kind}"] for case in ("start", "one step", "two steps new"))
    for name, weights in start.items():
        assert not torch.equal(weights, one[name]), name
        assert not torch.equal(one[name], two[name]), name
