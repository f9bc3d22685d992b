"""Megatron gives exactly the gradient of `masked_nll` and of the pairs' loss, however the batch is split.

The reference is `transformers` and plain autograd on the same weights. The ranks run once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.loss import masked_nll, response_mask
from rs_aligner.rollout import TrainingRow
from tests.policy.conftest import FAMILY, LAYOUTS
from tests.policy.layout_program import RECOMPUTES, WAYS, pairs, prompts, rows
from tests.policy.objective_cases import SPLITS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TWO = LAYOUTS[1:]


@pytest.fixture(scope="module")
def folder(layouts_folder: Path) -> Path:
    return layouts_folder


@pytest.fixture(scope="module")
def results(layouts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return layouts


def reference(model: torch.nn.Module, normalization: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the global batch by plain torch, row by row."""
    batch: list[TrainingRow] = rows()
    divisor = len(batch) if normalization == "sequence" else sum(len(row.response) for row in batch)
    model.zero_grad()
    total = 0.0
    for row in batch:
        tokens = torch.tensor([row.prompt + row.response])
        log_probs = model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
        mask = response_mask(torch.tensor([len(row.prompt)]), torch.tensor([len(row)]), len(row))
        loss = masked_nll(log_probs, mask, divisor, normalization)
        loss.backward()
        total += float(loss)
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def hf_model(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder / FAMILY)


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_are_those_of_plain_torch(
    results: dict[str, dict[str, Any]],
    hf_model: torch.nn.Module,
    layout: str,
    size: str,
    normalization: str,
) -> None:
    loss, grads = results[layout][f"gradient {normalization} {size}"]
    expected_loss, expected = reference(hf_model, normalization)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(grads) == set(expected)
    for name, grad in expected.items():
        error = (grads[name] - grad).norm() / grad.norm()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("layout", TWO)
def test_ranks_that_select_differently_are_told_of_it_before_they_train(
    results: dict[str, dict[str, Any]], layout: str
) -> None:
    said = results[layout]["selections"]
    assert said["better"] == "the same"
    for name in ("smallest", "even"):
        assert said[name].startswith("step 2: the selections are not the same on all ranks")
        assert "First difference: rollout " in said[name]
        assert "of prompt p" in said[name]
        assert "'rejected by keep' on one rank and is kept on another" in said[name]
        assert "PYTHONHASHSEED" in said[name]
    assert "that selector leaves 20 rollouts of the step on each" in said["smallest"]


@pytest.mark.parametrize("kind", ["ordinary", "distributed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loaded_checkpoint_continues_bit_for_bit(
    results: dict[str, dict[str, Any]], layout: str, kind: str
) -> None:
    through, resumed = results[layout][f"two steps {kind}"], results[layout][f"resumed {kind}"]
    assert all(torch.equal(through[name], resumed[name]) for name in through)


@pytest.mark.parametrize("kind", ["ordinary", "distributed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_optimizer_steps_agree_across_layouts(
    results: dict[str, dict[str, Any]], hf_model: torch.nn.Module, layout: str, kind: str
) -> None:
    one = results["one"]["two steps ordinary"]
    start = dict(hf_model.named_parameters())
    for name, weights in results[layout][f"two steps {kind}"].items():
        moved = (one[name] - start[name]).norm()
        assert moved > 0, name
        assert (weights - one[name]).norm() < 1e-3 * moved, name


@pytest.mark.parametrize("kind", ["ordinary", "distributed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_without_a_gradient_halves_matrices_and_leaves_norms_as_they_are(
    results: dict[str, dict[str, Any]], hf_model: torch.nn.Module, layout: str, kind: str
) -> None:
    """The rate makes weight decay take half of what it takes from."""
    start = dict(hf_model.named_parameters())
    for name, weights in results[layout][f"decayed {kind}"].items():
        assert torch.equal(weights, start[name] * (0.5 if start[name].dim() > 1 else 1.0)), name


@pytest.mark.parametrize("kind", ["ordinary", "distributed"])
@pytest.mark.parametrize("layout", TWO)
def test_a_checkpoint_of_another_layout_continues(
    results: dict[str, dict[str, Any]], layout: str, kind: str
) -> None:
    """One rank's checkpoint under DP=2, that of DP=2 under TP=2, and so on."""
    through, continued = results["one"][f"two steps {kind}"], results[layout][f"continued {kind}"]
    for name, weights in through.items():
        assert (continued[name] - weights).norm() < 1e-5 * weights.norm(), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_tokens_are_those_of_the_full_forward(
    results: dict[str, dict[str, Any]], hf_model: torch.nn.Module, layout: str, way: str
) -> None:
    """Cached decoding against running the whole sequence again for every token."""
    for group, prompt in enumerate(prompts()):
        tokens = list(prompt.token_ids)
        log_probs = []
        for _ in range(12):
            with torch.no_grad():
                last = hf_model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(last.argmax()))
            log_probs.append(float(last.max()))
        got, got_log_probs = results[layout][f"greedy {way}"][group, 0]
        assert list(got) == tokens[len(prompt.token_ids) :]
        assert got_log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", TWO)
def test_sampled_rollouts_agree_across_layouts(
    results: dict[str, dict[str, Any]], layout: str, way: str
) -> None:
    assert results[layout][f"sampled {way}"] == results["one"][f"sampled {way}"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", TWO)
def test_a_layout_seldom_flips_a_near_tie(
    results: dict[str, dict[str, Any]],
    layout: str,
    way: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Of 64 rollouts to a prompt: sums over ranks round otherwise, so now and then another token follows."""
    one, other = results["one"][f"many {way}"], results[layout][f"many {way}"]
    assert one.keys() == other.keys()
    flipped = sum(one[rollout] != other[rollout] for rollout in one) / len(one)
    record_property("share of rollouts that differ", flipped)
    print(f"{layout}, {way}: {flipped:.1%} of {len(one)} rollouts differ from those of one rank")
    assert flipped <= (0.0 if layout == "dp2" else 0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_exported_folder_is_the_trained_policy(
    results: dict[str, dict[str, Any]], folder: Path, layout: str
) -> None:
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder / f"{FAMILY}_{layout}" / "final")
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter, results[layout]["two steps distributed"][name]), name


@pytest.mark.parametrize("way", [*RECOMPUTES, "overlapped"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_recomputed_or_overlapped_changes_no_gradient(
    results: dict[str, dict[str, Any]], layout: str, way: str
) -> None:
    loss, grads = results[layout][f"gradient {way}"]
    expected_loss, expected = results[layout]["gradient sequence 2"]
    assert loss == expected_loss
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-6 * grad.norm(), name


def reward_reference(model: torch.nn.Module) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, accuracy and gradient of the pairs by plain torch, an answer at a time."""
    model.zero_grad()
    losses, right = [], 0
    for pair in pairs():
        chosen, rejected = (model(torch.tensor([x])).logits[0, 0] for x in (pair.chosen, pair.rejected))
        losses.append(-torch.log(torch.sigmoid(chosen - rejected)))
        right += int(chosen > rejected)
    loss = torch.stack(losses).mean()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return float(loss), right / len(losses), grads


@pytest.fixture(scope="module")
def hf_reward_model(results: dict[str, dict[str, Any]], folder: Path) -> torch.nn.Module:
    """The reward model before its first step, as one rank exported it."""
    start = folder / f"{FAMILY}_one" / "reward_start"
    return transformers.AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)


@pytest.mark.parametrize("size", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_of_pairs_are_those_of_plain_torch(
    results: dict[str, dict[str, Any]], hf_reward_model: torch.nn.Module, layout: str, size: str
) -> None:
    loss, grads = results[layout][f"pairs gradient {size}"]
    expected_loss, expected_accuracy, expected = reward_reference(hf_reward_model)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert results[layout][f"pairs accuracy {size}"]["accuracy"] == pytest.approx(expected_accuracy)
    assert set(grads) == set(expected)
    assert "score.weight" in grads
    for name, grad in expected.items():
        error = (grads[name] - grad).norm() / grad.norm()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_head_is_the_same_in_every_layout(
    results: dict[str, dict[str, Any]], hf_reward_model: torch.nn.Module, folder: Path, layout: str
) -> None:
    start = folder / f"{FAMILY}_{layout}" / "reward_start"
    head = transformers.AutoModelForSequenceClassification.from_pretrained(start).score.weight
    assert head.norm() > 0.1
    assert torch.equal(head, hf_reward_model.get_parameter("score.weight"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reward_models_checkpoint_continues_bit_for_bit_and_in_another_layout(
    results: dict[str, dict[str, Any]], layout: str
) -> None:
    through, one = results[layout]["pairs two steps"], results["one"]["pairs two steps"]
    for name, weights in results[layout]["pairs resumed"].items():
        assert torch.equal(weights, through[name]), name
    for name, weights in results[layout]["pairs continued"].items():
        assert (weights - one[name]).norm() < 1e-5 * one[name].norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_loads_the_exported_reward_model_with_the_same_scores(
    results: dict[str, dict[str, Any]], folder: Path, layout: str
) -> None:
    final = folder / f"{FAMILY}_{layout}" / "reward_final"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(final, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    with torch.no_grad():
        expected = [float(model(torch.tensor([pair.chosen])).logits) for pair in pairs()]
    scores = results[layout]["pairs scores"]
    assert list(scores) == list(range(len(expected)))
    assert list(scores.values()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_reward_model_is_loaded_with_its_head(
    results: dict[str, dict[str, Any]], layout: str
) -> None:
    found = results[layout]
    assert found["pairs scores of the folder"] == found["pairs scores"]
    after_one_step = found["pairs scores of the checkpoint"]
    assert after_one_step != found["pairs scores"]
    one = results["one"]["pairs scores of the checkpoint"]
    assert list(after_one_step.values()) == pytest.approx(list(one.values()), rel=1e-4, abs=1e-5)
