"""Greedy tokens, learning and the starting weights, on a GPU as in plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.optimizer import OptimizerConfig

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import Split
from rs_aligner.policy.reference import StartingWeights, response_log_probs
from rs_aligner.policy.training import Trainer
from tests.drawing import request_of
from tests.gpu.conftest import BOUND, TYPE
from tests.policy.layout_program import NoText, prompts, rows

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def trainer(folder: Path, rt: Runtime, precision: str) -> Trainer:
    arch, dtype = read_architecture(folder), TYPE[precision]
    config = transformer_config(arch, rt, dtype=dtype)
    model = build_model(arch, config, rt)
    huggingface.load_weights(folder, model, arch, rt)
    optimizer = OptimizerConfig(
        optimizer="adam", lr=1e-3, bf16=dtype == torch.bfloat16, params_dtype=dtype, clip_grad=1.0
    )
    return Trainer(model, config, rt, optimizer)


def test_greedy_rollouts_have_the_log_probs_of_plain_torch(
    trainer: Trainer, folder: Path, rt: Runtime, precision: str
) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=TYPE[precision]).to(rt.device)
    decoder = new_decoder(trainer.ddp.module, read_architecture(folder), rt, GenerationConfig(engine="torch"))
    asked = request_of(prompts(), 2, Controls(greedy=True, max_length=12))
    found = list(generate(decoder, NoText(), asked, seed=1))
    assert len(found) == 2 * len(prompts())
    for rollout in found:
        tokens = torch.tensor([prompts()[rollout.group].token_ids + rollout.token_ids], device=rt.device)
        with torch.no_grad():
            log_probs = reference(tokens).logits.float().log_softmax(-1)[0, :-1][-len(rollout.token_ids) :]
        taken = log_probs.gather(-1, tokens[0, -len(rollout.token_ids) :, None]).squeeze(-1)
        assert taken.tolist() == pytest.approx(list(rollout.log_probs), abs=BOUND[precision])
        assert taken.tolist() == pytest.approx(log_probs.max(-1).values.tolist(), abs=BOUND[precision])


def test_the_loss_falls(trainer: Trainer) -> None:
    before, _ = trainer.gradients(rows(), split=Split(2))
    for _ in range(5):
        trainer.step(rows(), split=Split(2), learning_rate=1e-2)
    assert trainer.gradients(rows(), split=Split(4))[0] < before


@pytest.mark.parametrize("offload", [True, False])
def test_the_starting_weights_change_places(trainer: Trainer, precision: str, offload: bool) -> None:
    start = StartingWeights(trainer, offload)

    def weights() -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in trainer.ddp.module.parameters()]

    begun, expected = weights(), response_log_probs(trainer, rows(), Split(2))
    for _ in range(2):
        trainer.step(rows(), split=Split(2), learning_rate=1e-2)
    trained = weights()
    with start.in_place():
        assert all(torch.equal(*pair) for pair in zip(weights(), begun, strict=True))
        found = response_log_probs(trainer, rows(), Split(2))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=BOUND[precision])
    assert all(torch.equal(*pair) for pair in zip(weights(), trained, strict=True))
    assert response_log_probs(trainer, rows(), Split(2)) != expected
    start.restore()
    assert all(torch.equal(*pair) for pair in zip(weights(), begun, strict=True))
