"""`mismatch/...`: what decoder and trainer differ in, in one process. Layouts: test_objective_layouts.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pytest
import torch

from rs_aligner.config import GenerationConfig, LengthParams, SamplingParams
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.mismatch import LARGEST, Mismatch
from rs_aligner.policy.outcome import NotFinite
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reference import response_log_probs
from rs_aligner.policy.sampler import Decoding
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt, TrainingRow
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.measure import training_metrics
from tests.policy.layout_program import prompts
from tests.policy.objective_cases import NoText, policy_config
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
Engine = Literal["auto", "kernels", "torch"]
ENGINES: tuple[Engine, ...] = ("kernels", "torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("mismatch"))


def new(folder: Path, rt: Runtime, engine: Engine = "torch", precision: str = "fp32") -> MegatronPolicy:
    tokenizer: Any = NoText()
    return MegatronPolicy(
        folder,
        policy_config(sequence_parallel=False, distributed=True),  # 7 rows an optimizer step
        rt,
        tokenizer,
        optimization=Optimization(lambda step: 1e-2, precision),
        generation=Decoding(GenerationConfig(engine=engine)),
    )


def sampled(policy: MegatronPolicy, asked: Sequence[Prompt], shift: float = 0.0) -> list[TrainingRow]:
    """14 rows, two optimizer steps, of rollouts whose log-probabilities are a shift off."""
    sampling = SamplingParams(temperature=0.7, top_k=30, repetition_penalty=1.1)
    stream = policy.generate(SampleRequest(asked, 3, sampling, LengthParams(max_length=24), step=1))
    rollouts = sorted(stream, key=lambda rollout: (rollout.group, rollout.index))[:14]
    assert len(rollouts) == 14
    return [
        TrainingRow(
            asked[one.group].token_ids,
            one.token_ids,
            decoder_log_probs=tuple(value + shift for value in one.log_probs),
        )
        for one in rollouts
    ]


def differences(policy: MegatronPolicy, rows: Sequence[TrainingRow]) -> list[float]:
    """Of each token, from a forward pass alone, by plain arithmetic; the smallest first."""
    computed = response_log_probs(policy.trainer, rows, policy.split)
    pairs = zip(
        (x for row in rows for x in row.decoder_log_probs), (x for row in computed for x in row), strict=True
    )
    return sorted(abs(noted - own) for noted, own in pairs)


def ninety_ninth(ordered: Sequence[float]) -> float:
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["tiny", "stories260k"])
def test_in_float32_decoder_and_trainer_agree(
    request: pytest.FixtureRequest, rt: Runtime, model: str, engine: Engine
) -> None:
    if engine == "kernels":
        request.getfixturevalue("compiler")
    folder = (
        request.getfixturevalue("tiny") if model == "tiny" else request.getfixturevalue("test_data") / model
    )
    policy = new(folder, rt, engine)
    first, second = policy.train(sampled(policy, prompts()))
    assert 0 < first.figures["mismatch/mean"] < 1e-4
    assert 0 < first.figures["mismatch/p99"] < 1e-4
    assert second.figures == {}  # the weights are others by then


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_in_bfloat16_they_differ_by_what_a_forward_pass_of_the_same_weights_says(
    tiny: Path, rt: Runtime, engine: Engine
) -> None:
    policy = new(tiny, rt, engine, precision="bf16")
    rows = sampled(policy, prompts())
    expected = differences(policy, rows[:7])
    stats = policy.train(rows)
    figures = stats[0].figures
    assert figures["mismatch/mean"] > 1e-3
    assert figures["mismatch/mean"] == pytest.approx(fmean(expected), rel=1e-6)
    assert figures["mismatch/p99"] == pytest.approx(ninety_ninth(expected), rel=0.012)
    assert training_metrics(stats).items() >= figures.items()  # not halved: one of the two has it


def test_a_decoder_that_lies_is_told_by_how_much(tiny: Path, rt: Runtime) -> None:
    policy = new(tiny, rt)
    figures = policy.train(sampled(policy, prompts(), shift=-0.1))[0].figures
    assert figures["mismatch/mean"] == pytest.approx(0.1, abs=1e-5)
    assert figures["mismatch/p99"] == pytest.approx(0.1, rel=0.012)


def test_it_is_of_the_first_optimizer_step_with_the_weights_that_sampled(tiny: Path, rt: Runtime) -> None:
    policy = new(tiny, rt)
    rows = sampled(policy, prompts())
    broken = [replace(row, weight=math.nan) for row in rows[:7]]
    skipped, applied = policy.train([*broken, *rows[7:]])
    assert (len(skipped.skipped), skipped.figures) == (7, {})
    assert 0 < applied.figures["mismatch/mean"] < 1e-4
    assert policy.train(rows)[0].figures == {}
    policy.version += 1  # the step is over: what is sampled now is of these weights
    assert 0 < policy.train(sampled(policy, prompts()))[0].figures["mismatch/mean"] < 1e-4


def test_rows_without_log_probabilities_take_no_part(tiny: Path, rt: Runtime) -> None:
    policy = new(tiny, rt)
    exact, off = sampled(policy, prompts()), sampled(policy, prompts(), shift=0.2)
    bare = [replace(row, decoder_log_probs=()) for row in exact]
    assert policy.trainer.gradients(bare[:7], split=policy.split)[1] == {}
    _, figures = policy.trainer.gradients([*off[:2], exact[2], *bare[3:7]], split=policy.split)
    expected = differences(policy, [*off[:2], exact[2]])
    assert figures["mismatch/mean"] == pytest.approx(fmean(expected), abs=1e-5)
    assert 0.01 < figures["mismatch/mean"] < 0.19
    assert figures["mismatch/p99"] == pytest.approx(0.2, rel=0.012)


def test_a_forward_pass_that_is_not_a_number_is_told_of_by_its_loss(tiny: Path, rt: Runtime) -> None:
    policy = new(tiny, rt)
    rows = sampled(policy, prompts())
    with torch.no_grad():
        policy.model.decoder.final_layernorm.weight[0] = torch.nan
    with pytest.raises(NotFinite, match="the loss is nan"):
        policy.trainer.gradients(rows, split=policy.split)


def figures_of(*differences: float) -> dict[str, float]:
    rows = [TrainingRow((1,), (2,) * len(differences), decoder_log_probs=tuple(differences))]
    found = Mismatch(rows, torch.device("cpu"))
    noted = torch.tensor([[*differences, math.nan]])
    found.add(torch.tensor([[0.0] * len(differences) + [math.nan]]), noted)
    return found.figures(counts=True)


@pytest.mark.parametrize("size", [3e-8, 1e-4, 0.0123, 1.0, 99.0])
def test_the_percentile_is_within_its_bin_and_never_beyond_the_rank(rt: Runtime, size: float) -> None:
    ninety_nine = figures_of(*[size] * 99, 1e3)
    assert ninety_nine["mismatch/p99"] == pytest.approx(size, rel=0.012)
    assert ninety_nine["mismatch/mean"] == pytest.approx((99 * size + 1e3) / 100)
    assert figures_of(*[size] * 98, 1e3, 1e3)["mismatch/p99"] == pytest.approx(1e3, rel=0.012)


def test_differences_beyond_the_bins_are_in_the_outermost(rt: Runtime) -> None:
    assert figures_of(0.0, 0.0, 1e-12)["mismatch/p99"] == 0
    assert figures_of(1e9)["mismatch/p99"] == pytest.approx(10**LARGEST, rel=0.012)
