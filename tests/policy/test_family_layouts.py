"""What layers have beyond a Llama's is in every layout what it is in transformers and `peft`.

Biases and YaRN; GPT-2's positions, which the first stage has, and its tensors that are several matrices;
norms over heads that ranks share, norms behind attention, caps, angles and windows that differ by layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.policy.layout_program import LAYOUTS, prompts
from tests.policy.test_layouts import reference
from tests.policy.test_lora import far, loss_and_gradient
from tests.ranks import run_ranks
from tests.tiny import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MODELS = {
    "all of llama": 7,
    "gpt2": 6,
    "smollm3": 0,
    "granite": 0,
    "olmo2": 0,
    "phi3": 0,
    "gemma2": 0,
    "gemma3": 0,
}
"""Families, and the biases of a layer; GPT-2 has one more behind the last. Those without have two layers."""
Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name, biases in MODELS.items():
        save_tiny(name, folder / name, layers=None if biases else 2)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], Found]]:
    """What each of two ranks found, by model and layout."""
    return run_ranks("tests.policy.family_program", 2, folder, *MODELS, timeout=1100)


@pytest.fixture(
    scope="module", params=[(model, layout) for model in MODELS for layout in LAYOUTS[2]], ids=str
)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def by_rank(ranks: list[dict[tuple[str, str], Found]], case: tuple[str, str]) -> list[Found]:
    return [rank[case] for rank in ranks]


@pytest.fixture(scope="module")
def model(folder: Path, case: tuple[str, str]) -> torch.nn.Module:
    found: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder / case[0]).eval()
    return found


def of_all_stages(by_rank: list[Found], what: str) -> dict[Any, Any]:
    return {name: one for rank in by_rank for name, one in rank[what].items()}


def test_loss_and_gradient_are_those_of_plain_torch(
    by_rank: list[Found], model: torch.nn.Module, case: tuple[str, str]
) -> None:
    expected_loss, expected = reference(model, "sequence")
    assert by_rank[-1]["loss"] == pytest.approx(expected_loss, rel=1e-5)
    grads = of_all_stages(by_rank, "grads")
    assert set(grads) == set(expected)
    assert sum(".bias" in name for name in grads) >= MODELS[case[0]] * 4
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() / grad.norm() < 1e-5, name


def test_greedy_tokens_are_those_of_the_full_forward(by_rank: list[Found], model: torch.nn.Module) -> None:
    tokens = of_all_stages(by_rank, "tokens")
    assert len(tokens) == len(prompts())
    for group, prompt in enumerate(prompts()):
        row = list(prompt.token_ids)
        for _ in tokens[group]:
            with torch.no_grad():
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        assert list(tokens[group]) == row[len(prompt.token_ids) :]


@pytest.mark.parametrize("what", ["", "adapters "])
def test_a_checkpoint_of_another_layout_is_the_same_model(
    ranks: list[dict[tuple[str, str], Found]], case: tuple[str, str], what: str
) -> None:
    place = list(LAYOUTS[2]).index(case[1])
    if not place:
        pytest.skip("the first layout loads none")
    before = case[0], list(LAYOUTS[2])[place - 1]
    saved = of_all_stages([rank[before] for rank in ranks], f"{what}saved")
    loaded = of_all_stages([rank[case] for rank in ranks], f"{what}loaded")
    assert set(loaded) == set(saved)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_adapters_have_the_loss_and_gradient_of_peft(
    by_rank: list[Found], folder: Path, case: tuple[str, str]
) -> None:
    import peft

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / case[0], dtype=torch.float64)
    adapter = folder / f"{case[0]}_{case[1]}" / "adapters"
    adapted = peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True).double().eval()
    expected_loss, expected = loss_and_gradient(adapted)
    loss, grads = by_rank[-1]["adapters"]
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert max(far(grads, expected).values()) < 1e-5
