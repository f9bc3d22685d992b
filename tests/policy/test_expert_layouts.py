"""Experts in every layout: loss, gradient, its norm, rollouts, checkpoints and export are those of one rank.

The reference is `transformers` and plain autograd on the same weights. The ranks run once for all.
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from rs_aligner.loss import masked_nll, response_mask
from tests.policy.experts_program import ADAPTED, LAYOUTS, ONES, SPLITS
from tests.policy.layout_program import prompts, rows
from tests.policy.test_layouts import reference
from tests.policy.test_lora import far, loss_and_gradient, with_peft
from tests.ranks import run_program
from tests.tiny import MIXTURES, balanced, by_expert, save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FAMILIES = {name: layout.family for layouts in LAYOUTS.values() for name, layout in layouts.items()}
NAMES = list(FAMILIES)
SEVERAL = [name for name in NAMES if name not in ONES.values()]
Found = dict[str, list[dict[str, Any]]]
"""By layout: what each rank found."""
Right = dict[str, tuple[float, dict[str, torch.Tensor]]]
"""By family: loss and gradient."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for family in ONES:
        balanced(save_tiny(family, folder / family / "model", layers=2), folder / family / "balanced")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    run_program("tests.policy.experts_program", folder, timeout=1100)
    return {
        name: [
            pickle.loads((folder / f"{number}_{rank}.pickle").read_bytes())[name] for rank in range(number)
        ]
        for number, layouts in LAYOUTS.items()
        for name in layouts
    }


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, torch.nn.Module]:
    """By family."""
    return {
        family: transformers.AutoModelForCausalLM.from_pretrained(folder / family / "model")
        for family in ONES
    }


@cache
def with_routers_loss(folder: Path, family: str) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, the routers' part of it, and gradient of the rows as one padded batch by `transformers`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    batch = rows()
    lengths = torch.tensor([len(row) for row in batch])
    tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(batch):
        tokens[i, : len(row)] = torch.tensor(row.prompt + row.response)
    there = torch.arange(tokens.shape[1]) < lengths[:, None]
    found = model(tokens, attention_mask=there.long(), output_router_logits=True)
    log_probs = found.logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    mask = response_mask(torch.tensor([len(row.prompt) for row in batch]), lengths, tokens.shape[1])
    of_routers = model.config.router_aux_loss_coef * found.aux_loss
    loss = masked_nll(log_probs, mask, len(batch)) + of_routers
    loss.backward()
    return (
        float(loss),
        float(of_routers),
        by_expert({n: p.grad for n, p in model.named_parameters()}, MIXTURES[family]),
    )


def together(ranks: list[dict[str, Any]], case: str) -> dict[Any, Any]:
    """What the ranks found of a case, of all stages, shares of experts, and replicas."""
    parts = [rank[case] for rank in ranks]
    return {
        key: value for part in parts for key, value in (part[1] if isinstance(part, tuple) else part).items()
    }


@pytest.fixture(scope="module")
def right(models: dict[str, torch.nn.Module]) -> Right:
    """Loss and gradient of each family by plain torch."""
    found = {family: reference(model, "sequence") for family, model in models.items()}
    return {family: (loss, by_expert(grads, MIXTURES[family])) for family, (loss, grads) in found.items()}


@pytest.mark.parametrize("case", [*SPLITS, "full", "selective", "overlapped"])
@pytest.mark.parametrize("layout", NAMES)
def test_loss_and_gradient_are_those_of_plain_torch(
    found: Found, right: Right, layout: str, case: str
) -> None:
    (expected_loss, expected), grads = right[FAMILIES[layout]], together(found[layout], f"gradient {case}")
    for rank in found[layout]:
        assert rank[f"gradient {case}"][0] == pytest.approx(expected_loss, rel=1e-5)
        assert rank[f"gradient {case}"][2] == {}
    assert set(grads) == set(expected)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", NAMES)
def test_the_routers_own_loss_is_that_of_the_whole_batch(
    found: Found, folder: Path, layout: str, split: str
) -> None:
    family = FAMILIES[layout]
    expected_loss, of_routers, expected = with_routers_loss(folder / family / "balanced", family)
    grads = together(found[layout], f"balanced {split}")
    for rank in found[layout]:
        assert rank[f"balanced {split}"][0] == pytest.approx(expected_loss, rel=1e-5)
        assert rank[f"balanced {split}"][2] == {"loss/routers": pytest.approx(of_routers, rel=1e-5)}
    assert set(grads) == set(expected)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


@pytest.mark.parametrize("kind", ["ordinary", "distributed"])
@pytest.mark.parametrize("layout", NAMES)
def test_the_norm_of_a_gradient_counts_each_expert_once(
    found: Found, right: Right, layout: str, kind: str
) -> None:
    norm = float(torch.stack([grad.norm() for grad in right[FAMILIES[layout]][1].values()]).norm())
    for rank in found[layout]:
        assert rank[f"norm {kind}"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("case", ["one step ordinary", "one step distributed", "two steps", "continued"])
@pytest.mark.parametrize("layout", SEVERAL)
def test_optimizer_steps_and_checkpoints_of_other_layouts_are_those_of_one_rank(
    found: Found, models: dict[str, torch.nn.Module], layout: str, case: str
) -> None:
    """One rank's checkpoint is continued in the first layout of several, that one's in the next and so on."""
    family = FAMILIES[layout]
    start = by_expert(dict(models[family].named_parameters()), MIXTURES[family])
    one, other = (together(found[name], case) for name in (ONES[family], layout))
    assert set(other) == set(one) == set(start)
    for name, weights in one.items():
        moved = (weights - start[name]).norm()
        assert moved > 0, name
        assert (other[name] - weights).norm() < 1e-3 * moved, name


@pytest.mark.parametrize("layout", NAMES)
def test_a_loaded_checkpoint_continues_bit_for_bit(found: Found, layout: str) -> None:
    through, resumed = (together(found[layout], case) for case in ("two steps", "resumed"))
    assert all(torch.equal(through[name], resumed[name]) for name in through)


@pytest.mark.parametrize("layout", NAMES)
def test_greedy_tokens_are_those_of_the_full_forward(
    found: Found, models: dict[str, torch.nn.Module], layout: str
) -> None:
    model = models[FAMILIES[layout]]
    tokens = together(found[layout], "greedy")
    assert len(tokens) == len(prompts())
    for (group, _), ids in tokens.items():
        row = list(prompts()[group].token_ids)
        for token in ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([row])).logits[0, -1].argmax())
            row.append(token)


@pytest.mark.parametrize("layout", SEVERAL)
def test_sampled_rollouts_are_those_of_one_rank(found: Found, layout: str) -> None:
    """Replicas that share experts decode other waves, of which one has more tokens than the other."""
    assert together(found[layout], "sampled") == together(found[ONES[FAMILIES[layout]]], "sampled")


@pytest.mark.parametrize("layout", SEVERAL)
def test_an_export_has_every_expert_and_transformers_loads_it(
    found: Found, folder: Path, layout: str
) -> None:
    final = folder / layout / "final"
    tensors = {name: value for file in final.glob("*.safetensors") for name, value in load_file(file).items()}
    trained = together(found[layout], "two steps")
    assert set(tensors) == set(trained)
    assert all(torch.equal(tensors[name], value) for name, value in trained.items())
    _, report = transformers.AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("layout", ADAPTED)
def test_adapters_beside_experts_have_the_gradient_of_peft(found: Found, folder: Path, layout: str) -> None:
    """Of `peft` on `transformers`, in float64, from the folder that the layout wrote."""
    model = with_peft(folder / FAMILIES[layout], folder / layout / "adapters" / "start", torch.float64)
    model.get_base_model().set_experts_implementation("eager")  # the default knows no float64
    total, expected = loss_and_gradient(model)
    norm = float(torch.stack([grad.norm() for grad in expected.values()]).norm())
    loss, grads = found[layout][0]["adapters"]["gradient"]
    assert loss == pytest.approx(total, rel=1e-6)
    assert max(far(grads, expected).values()) < 3e-6
    assert all(rank["adapters"]["norm"] == pytest.approx(norm, rel=1e-5) for rank in found[layout])


@pytest.mark.parametrize("layout", ADAPTED)
def test_adapters_beside_experts_go_on_bit_for_bit_and_the_base_stays(found: Found, layout: str) -> None:
    for rank in found[layout]:
        steps = rank["adapters"]
        assert all(steps[case] for case in ("base", "reference", "trained again", "restarted"))
    steps = found[layout][0]["adapters"]
    assert steps["two steps"]
    for case in ("resumed", "two steps again"):
        assert all(torch.equal(one, steps[case][name]) for name, one in steps["two steps"].items()), case


@pytest.mark.parametrize("layout", [name for name in ADAPTED if name in SEVERAL])
def test_adapters_beside_experts_step_as_on_one_rank_and_from_its_checkpoint(
    found: Found, layout: str
) -> None:
    one = found[ONES[FAMILIES[layout]]][0]["adapters"]["two steps"]
    for case in ("two steps", "continued"):
        other = found[layout][0]["adapters"][case]
        assert set(other) == set(one)
        for name, weights in one.items():
            assert (other[name] - weights).norm() < 1e-4 * weights.norm(), (case, name)
