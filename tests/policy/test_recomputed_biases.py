"""MLPs with biases, computed again in the backward pass: the same gradient, and no step's graph is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rs_aligner.model import huggingface
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import Split
from tests.policy.layout_program import RECOMPUTES, new_trainer, rows
from tests.tiny import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize("family", ["gpt2", "all of llama"])
@pytest.mark.parametrize("way", ["selective", "full"])
def test_gradients_are_those_of_what_is_kept_and_parameters_stay_leaves(
    rt: Runtime, tmp_path: Path, family: str, way: str
) -> None:
    folder = save_tiny(family, tmp_path / "model", layers=2)
    arch, found = read_architecture(folder), []
    for recompute in (None, RECOMPUTES[way]):
        trainer = new_trainer(folder, rt, distributed=False, recompute=recompute)
        for _ in range(2):  # the second meets what the first has left
            loss, _ = trainer.gradients(rows(), split=Split(4))
            assert all(parameter.is_leaf for parameter in trainer.ddp.parameters())
        grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
        found.append((loss, grads))
    (expected_loss, expected), (loss, grads) = found
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, grad in expected.items():
        assert torch.allclose(grads[name], grad, rtol=1e-4, atol=1e-7), name
