"""On an NVIDIA GPU: bodies of tests that are run on a CPU elsewhere. Run with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sharing import attend_at_once
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.policy import offload
from rs_aligner.policy.offload import NOTHING, Offloading
from tests.generation import test_budget as budget
from tests.generation import test_decoding as decoding
from tests.generation import test_sharing as sharing
from tests.generation.conftest import AnyDecoder
from tests.gpu.conftest import ON_GPU
from tests.policy.layout_program import rows
from tests.policy.offloaded import bytes_there, life, new, same, sampled, states
from tests.tiny import save_tiny

pytestmark = [*ON_GPU, pytest.mark.timeout(300)]


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
