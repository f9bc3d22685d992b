"""Biases and YaRN are in every layout what they are in transformers, each bias with its whole gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.policy.layout_program import LAYOUTS, prompts
from tests.policy.test_layouts import reference
from tests.ranks import run_ranks
from tests.tiny import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("biases")
    save_tiny("all of llama", folder / "model")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks found, by the layout's name."""
    return run_ranks("tests.policy.bias_program", 2, folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    found: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    return found


@pytest.mark.parametrize("layout", LAYOUTS[2])
def test_loss_and_gradient_are_those_of_plain_torch(
    ranks: list[dict[str, dict[str, Any]]], model: torch.nn.Module, layout: str
) -> None:
    expected_loss, expected = reference(model, "sequence")
    assert ranks[-1][layout]["loss"] == pytest.approx(expected_loss, rel=1e-5)
    grads = {name: grad for rank in ranks for name, grad in rank[layout]["grads"].items()}  # of all stages
    assert set(grads) == set(expected)
    assert sum(name.endswith(".bias") for name in grads) == 7 * 4
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() / grad.norm() < 1e-5, name


@pytest.mark.parametrize("layout", LAYOUTS[2])
def test_greedy_tokens_are_those_of_the_full_forward(
    ranks: list[dict[str, dict[str, Any]]], model: torch.nn.Module, layout: str
) -> None:
    tokens = {group: ids for rank in ranks for group, ids in rank[layout]["tokens"].items()}
    assert len(tokens) == len(prompts())
    for group, prompt in enumerate(prompts()):
        row = list(prompt.token_ids)
        for _ in tokens[group]:
            with torch.no_grad():
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        assert list(tokens[group]) == row[len(prompt.token_ids) :]
