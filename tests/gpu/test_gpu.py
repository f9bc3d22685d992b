"""On an NVIDIA GPU: the same loss, gradient and greedy tokens as plain torch. Run with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron.core.optimizer import OptimizerConfig

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.sharing import attend_at_once
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.policy import offload
from rs_aligner.policy.batches import Split
from rs_aligner.policy.offload import NOTHING, Offloading
from rs_aligner.policy.reference import StartingWeights, response_log_probs
from rs_aligner.policy.training import Trainer
from tests.drawing import request_of
from tests.generation import test_budget as budget
from tests.generation import test_decoding as decoding
from tests.generation import test_sharing as sharing
from tests.generation.conftest import AnyDecoder
from tests.gpu.conftest import ON_GPU
from tests.policy.layout_program import NoText, prompts, rows
from tests.policy.offloaded import bytes_there, life, new, same, sampled, states
from tests.tiny import save_tiny

pytestmark = [*ON_GPU, pytest.mark.timeout(300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_what_plain_torch_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_tiny("llama", tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    with runtime.start(accelerator="gpu", timeout_minutes=1) as rt:
        arch = read_architecture(folder)
        config = transformer_config(arch, rt, dtype=dtype)
        model = build_model(arch, config, rt)
        huggingface.load_weights(folder, model, arch, rt)
        optimizer = OptimizerConfig(
            optimizer="adam", lr=1e-3, bf16=dtype == torch.bfloat16, params_dtype=dtype, clip_grad=1.0
        )
        trainer = Trainer(model, config, rt, optimizer)
        stream = generate(
            new_decoder(model, arch, rt),
            NoText(),
            request_of(prompts(), 2, Controls(greedy=True, max_length=12)),
            seed=1,
        )
        for rollout in stream:
            tokens = torch.tensor([prompts()[rollout.group].token_ids + rollout.token_ids]).cuda()
            with torch.no_grad():
                log_probs = reference(tokens).logits.float().log_softmax(-1)[0, :-1]
            taken = log_probs.gather(-1, tokens[0, 1:, None]).squeeze(-1)[-len(rollout.token_ids) :]
            assert taken.tolist() == pytest.approx(list(rollout.log_probs), abs=tolerance)
        before, _ = trainer.gradients(rows(), split=Split(2))
        for _ in range(5):
            trainer.step(rows(), split=Split(2), learning_rate=1e-2)
        assert trainer.gradients(rows(), split=Split(4))[0] < before


@pytest.mark.parametrize("kv_cache_bytes", [None, 400])
@pytest.mark.parametrize(
    "holds",
    [
        decoding.test_log_probs_are_those_of_the_policy_before_temperature_and_filters,
        decoding.test_sampled_tokens_follow_from_the_full_forward_and_the_seed,
    ],
)
def test_sampling_on_a_gpu_is_that_of_the_full_forward(
    folder: Path, holds: Callable[[Any, torch.nn.Module], None], kv_cache_bytes: int | None
) -> None:
    """With every control, rows that end and are packed, and where all of them do not fit into the cache."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with on_gpu(folder) as decoder:
        decoder.kv_cache_bytes = kv_cache_bytes and kv_cache_bytes * budget.bytes_of_a_token(decoder)
        holds(decoder, reference)


def test_rollouts_on_a_gpu_end_as_they_should(folder: Path) -> None:
    with on_gpu(folder) as decoder:
        decoding.test_the_end_token_ends_a_rollout_and_nothing_else_but_the_length_does(decoder)
        decoding.test_rollouts_leave_as_they_end_and_not_at_the_end_of_the_wave(decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (2, 9, 1)])
@pytest.mark.parametrize("counts", [(2, 2, 2), (1, 4, 2)])
def test_attention_on_a_gpu_is_that_of_each_rollout_alone(
    dtype: torch.dtype, lengths: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    with torch.device("cuda"):
        sharing.test_attention_is_that_of_each_rollout_alone(attend_at_once, dtype, lengths, counts)


@contextmanager
def on_gpu(folder: Path) -> Iterator[AnyDecoder]:
    """The model in single precision, ready to decode on torch."""
    with runtime.start(accelerator="gpu", timeout_minutes=1) as rt:
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
        huggingface.load_weights(folder, model, arch, rt)
        yield new_decoder(model, arch, rt, GenerationConfig(engine="torch"))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_starting_weights_change_places_on_a_gpu(
    tmp_path: Path, dtype: torch.dtype, offload: bool
) -> None:
    folder = save_tiny("llama", tmp_path)
    with runtime.start(accelerator="gpu", timeout_minutes=1) as rt:
        arch = read_architecture(folder)
        config = transformer_config(arch, rt, dtype=dtype)
        model = build_model(arch, config, rt)
        huggingface.load_weights(folder, model, arch, rt)
        optimizer = OptimizerConfig(
            optimizer="adam", lr=1e-3, bf16=dtype == torch.bfloat16, params_dtype=dtype, clip_grad=1.0
        )
        trainer = Trainer(model, config, rt, optimizer)
        start = StartingWeights(trainer, offload)

        def weights() -> list[torch.Tensor]:
            return [parameter.detach().clone() for parameter in model.parameters()]

        begun, expected = weights(), response_log_probs(trainer, rows(), Split(2))
        for _ in range(2):
            trainer.step(rows(), split=Split(2), learning_rate=1e-2)
        trained = weights()
        with start.in_place():
            assert response_log_probs(trainer, rows(), Split(2)) == expected
        assert all(torch.equal(*pair) for pair in zip(weights(), trained, strict=True))
        assert response_log_probs(trainer, rows(), Split(2)) != expected
        start.restore()
        assert all(torch.equal(*pair) for pair in zip(weights(), begun, strict=True))


@pytest.mark.parametrize(
    "how", [Offloading(while_sampling=True), Offloading(True, 0.5), Offloading(True, 1.0)]
)
def test_optimizer_states_that_wait_beside_a_gpu_are_off_it_and_change_no_bit(
    tmp_path: Path, how: Offloading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "PIECE", 4000)
    folder = save_tiny("llama", tmp_path / "model")
    with runtime.start(accelerator="gpu", timeout_minutes=1) as rt:
        plain = life(folder, tmp_path / "plain", rt, NOTHING, precision="bf16")
        found = life(folder, tmp_path / "offloaded", rt, how, precision="bf16")
        assert [case for case, value in plain.items() if not same(value, found[case])] == []
        policy = new(folder, rt, how, precision="bf16")
        policy.train(rows())
        before = torch.cuda.memory_allocated()
        sampled(policy)
        trained = sum(one.numel() for one in policy.model.parameters())
        there = sum(bytes_there(one) for one in states(policy).values())
        assert there == 0
        if not how.fraction:
            assert before - torch.cuda.memory_allocated() > 14 * trained  # of 16, beside what sampling leaves
