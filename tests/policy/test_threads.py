"""Torch's threads in passes of the policy: by what is multiplied, at most as many as the rank has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rs_aligner import threads
from rs_aligner.config import GenerationConfig, ObjectiveConfig
from rs_aligner.model import runtime
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reward_model import load_reward_model
from rs_aligner.policy.sampler import Decoding
from rs_aligner.policy.scoring import SequenceScorer
from rs_aligner.rollout import TrainingRow
from rs_aligner.threads import Threads
from tests.policy.test_reference import new, sampled
from tests.tiny import save_tiny

AUTOMATIC, CHOSEN = Threads(2, chosen=False), Threads(2, chosen=True)
LAYER = 32 * 8 * 2 * (4 + 2) + 3 * 32 * 80 + 2 * 32  # weights of the tiny model's
ROWS = [TrainingRow((1, 2), (3,) * length) for length in (2, 6, 18)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("threads"))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers that torch is told."""
    told: list[int] = []
    real = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda number: (told.append(number), real(number))[1])
    return told


def policy_with(some: Threads, folder: Path, rt: Runtime, *, compiled: bool = True) -> MegatronPolicy:
    decoding = Decoding(GenerationConfig(engine="kernels" if compiled else "torch"))
    options = {"keep_start": True, "generation": decoding}
    return new(folder, replace(rt, threads=some), ObjectiveConfig(), **options)


def test_a_small_model_trains_on_one_thread(folder: Path, rt: Runtime, used: list[int]) -> None:
    policy = policy_with(AUTOMATIC, folder, rt)
    policy.step(ROWS, 1e-3)
    policy.reference_log_probs(ROWS)
    assert set(used) == {1}


def test_a_chosen_number_is_obeyed_by_torch(folder: Path, rt: Runtime, used: list[int]) -> None:
    policy = policy_with(CHOSEN, folder, rt, compiled=False)
    policy.step(ROWS, 1e-3)
    policy.reference_log_probs(ROWS)
    sampled(policy)
    assert set(used) == {2}


@pytest.mark.parametrize(("tokens", "expected"), [(19, 2), (20, 2), (21, 1)])
def test_the_widest_micro_batch_decides_to_the_multiplication(
    folder: Path, rt: Runtime, used: list[int], monkeypatch: pytest.MonkeyPatch, tokens: int, expected: int
) -> None:
    """The longest row has 20 tokens and is a micro-batch."""
    monkeypatch.setattr(threads, "LEAST_WORK", tokens * LAYER)
    policy_with(AUTOMATIC, folder, rt).step(ROWS, 1e-3)
    assert set(used) == {expected}


def test_the_torch_decoder_asks_at_each_pass(
    folder: Path, rt: Runtime, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts together are more tokens than a token of each rollout."""
    policy = policy_with(AUTOMATIC, folder, rt, compiled=False)
    sampled(policy)
    assert set(used) == {1}
    used.clear()
    monkeypatch.setattr(threads, "LEAST_WORK", 20 * LAYER)
    sampled(policy)
    assert used[0] == 2
    assert used[-1] == 1


def test_a_sequence_is_scored_on_a_number_of_threads_that_depends_on_its_own_width(
    folder: Path, rt: Runtime, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(rt, threads=AUTOMATIC)
    model, _ = load_reward_model(folder, few)
    monkeypatch.setattr(threads, "LEAST_WORK", 2 * 128 * LAYER)
    SequenceScorer(model, few, 2)([(1,) * 100, (1, 2), (3,)])
    assert used == [1, 2]  # batches of 64 and of 128 wide


def test_a_large_output_layer_counts_where_the_layers_are_small(folder: Path, rt: Runtime) -> None:
    model = policy_with(AUTOMATIC, folder, rt).model
    assert runtime._largest_part(model) == LAYER
    model.output_layer.output_size_per_partition = 50_000
    assert runtime._largest_part(model) == 50_000 * 32


def test_what_training_uses_is_told_once(
    folder: Path, rt: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="rs_aligner")
    policy = policy_with(AUTOMATIC, folder, rt)
    for _ in range(2):
        policy.step(ROWS, 1e-3)
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    policy_with(AUTOMATIC, folder, rt).step(ROWS, 1e-3)
    policy_with(Threads(1, False), folder, rt).step(ROWS, 1e-3)
    lines = [record.getMessage() for record in caplog.records if "training" in record.getMessage()]
    assert lines == [
        "training: 1 of 2 threads: one is kept to for so little work",
        "training: 2 of 2 threads",
    ]
