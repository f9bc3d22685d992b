"""The starting policy of a policy in one process: what is refused, what an error leaves, what is sampled.

Values and bits in all parallel layouts are in `test_objective_layouts.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.config import LengthParams, ObjectiveConfig, SamplingParams, TrainRSConfig
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.memory import training_bytes
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import num_parameters
from rs_aligner.objective import terms
from rs_aligner.policy.batches import Split
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reference import StartingWeights, response_log_probs
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.sample_request import SampleRequest
from tests.policy.full_kl import FullKL
from tests.policy.layout_program import prompts, rows
from tests.policy.objective_cases import NoText, policy_config
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("reference"))


@pytest.fixture
def policy(folder: Path, rt: Runtime) -> MegatronPolicy:
    return new(folder, rt, ObjectiveConfig(advantage="group", clip=0.2), keep_start=True)


def new(folder: Path, rt: Runtime, objective: ObjectiveConfig, **options: Any) -> MegatronPolicy:
    tokenizer: Any = NoText()
    config = policy_config(sequence_parallel=False, distributed=True)
    return MegatronPolicy(
        folder,
        config,
        rt,
        tokenizer,
        optimization=Optimization(lambda step: 1e-2),
        objective=objective,
        **options,
    )


def unused(rs: dict[str, Any]) -> TrainRSConfig:
    """A config that nothing runs by."""
    tree = {
        "exp_manager": {"explicit_log_dir": "unused"},
        "pretrained_checkpoint": {"restore_from_path": "unused"},
        "model": {"data": {"data_prefix": {"train": "unused"}}, "rs": rs},
    }
    return TrainRSConfig.model_validate(tree)


def weights(policy: MegatronPolicy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in policy.model.parameters()]


def sampled(policy: MegatronPolicy) -> list[Rollout]:
    stream = policy.generate(
        SampleRequest(prompts(), 2, SamplingParams(), LengthParams(max_length=8), step=1)
    )
    return sorted(stream, key=lambda rollout: (rollout.group, rollout.index))


def test_a_policy_without_a_copy_has_no_starting_policy(folder: Path, rt: Runtime) -> None:
    policy = new(folder, rt, ObjectiveConfig())
    with pytest.raises(ValueError, match="keep_start=True"):
        policy.reference_log_probs(rows())
    with pytest.raises(ValueError, match="keep_start=True"):
        policy.restart()


def test_no_rows_have_no_log_probabilities_and_no_response_an_empty_one(policy: MegatronPolicy) -> None:
    assert policy.reference_log_probs([]) == []
    found = policy.reference_log_probs([TrainingRow((1, 2), ()), TrainingRow((1,), (5,))])
    assert [len(one) for one in found] == [0, 1]
    assert found[1][0] < 0


def test_a_row_has_the_same_log_probabilities_whatever_is_beside_it(policy: MegatronPolicy) -> None:
    together = policy.reference_log_probs(rows())
    for row, expected in zip(rows(), together, strict=True):
        assert policy.reference_log_probs([row])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("offload", [True, False])
def test_an_error_gives_the_model_its_own_weights_back(policy: MegatronPolicy, offload: bool) -> None:
    start, begun = StartingWeights(policy.trainer, offload), weights(policy)
    policy.train(rows())
    own = weights(policy)

    def fail() -> None:
        with start.in_place():
            assert all(torch.equal(*pair) for pair in zip(weights(policy), begun, strict=True))
            raise MemoryError("no room for the logits")

    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            fail()
        assert all(torch.equal(*pair) for pair in zip(weights(policy), own, strict=True))
    assert not torch.equal(own[0], begun[0])


def test_the_decoder_samples_from_the_weights_of_a_restart(policy: MegatronPolicy) -> None:
    policy.version = 3
    at_start = sampled(policy)
    policy.train(rows())
    trained = sampled(policy)
    policy.restart()
    assert sampled(policy) == at_start != trained
    assert (policy.version, policy.optimizer_steps) == (3, 0)


OFFLOADED, ON_DEVICE = {"objective": {"offload_reference": True}}, {"objective": {"offload_reference": False}}


@pytest.mark.parametrize(
    ("rs", "on_gpu", "copies"),
    [
        ({"kl_samples": 0}, True, 0),
        ({"kl_samples": 0, **ON_DEVICE}, True, 0),
        ({"kl_samples": 0, "objective": {"kl": 0.1}}, True, 0),
        ({"kl_samples": 0, "objective": {"kl": 0.1, "offload_reference": False}}, True, 1),
        ({"kl_samples": 0, "pool": {"restart": True}, **ON_DEVICE}, True, 1),
        ({"kl_samples": 8, **ON_DEVICE}, True, 1),
        ({"kl_samples": 8, "offline": "unused", **ON_DEVICE}, True, 0),
        ({"kl_samples": 8, **OFFLOADED}, True, 0),
        ({"kl_samples": 8, **OFFLOADED}, False, 1),  # on a CPU it is in the memory that trains
    ],
)
def test_the_memory_plan_counts_a_copy_where_the_model_is(
    folder: Path, rs: dict[str, Any], on_gpu: bool, copies: int
) -> None:
    def planned(rs: dict[str, Any]) -> int:
        return training_bytes(arch, unused(rs), bf16=True, on_gpu=on_gpu)

    arch = read_architecture(folder)
    assert planned(rs) - planned({"kl_samples": 0}) == copies * 2 * num_parameters(arch)


def test_the_memory_plan_counts_the_start_for_a_term_that_compares_logits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = read_architecture(folder)
    without = training_bytes(arch, unused({"kl_samples": 0}), bf16=True, on_gpu=False)
    monkeypatch.setattr(terms, "TERMS", [*terms.TERMS, FullKL.of])
    compared = training_bytes(arch, unused({"kl_samples": 0}), bf16=True, on_gpu=False)
    assert compared - without == 2 * num_parameters(arch)


# Rows that an objective cannot take


@pytest.mark.parametrize("name", ["sampled_log_probs", "reference_log_probs"])
@pytest.mark.parametrize("values", [(-1.0,), (-1.0, math.nan), (-1.0, -math.inf), (-1.0, -2.0, -3.0)])
def test_log_probabilities_that_do_not_fit_the_response_are_refused(
    policy: MegatronPolicy, name: str, values: tuple[float, ...]
) -> None:
    row = replace(TrainingRow((1, 2), (3, 4)), **{name: values})
    with pytest.raises(ValueError, match=f"{name} must be a finite number for each of the 2 response tokens"):
        policy.train([row, *rows()])


def test_rows_for_ratios_need_bounds_to_clip_them_to(folder: Path, rt: Runtime) -> None:
    policy = new(folder, rt, ObjectiveConfig())
    with pytest.raises(ValueError, match=r"set model\.rs\.objective\.clip"):
        policy.train([TrainingRow((1, 2), (3, 4), 1.0, (-1.0, -1.0))])


def test_without_a_weight_the_divergence_is_measured_and_not_trained(
    folder: Path, rt: Runtime, policy: MegatronPolicy
) -> None:
    log_probs = policy.reference_log_probs(rows())
    beside = [
        replace(row, reference_log_probs=tuple(x - 0.5 for x in own))
        for row, own in zip(rows(), log_probs, strict=True)
    ]
    (stats,) = policy.train(beside)
    assert stats.figures == pytest.approx({"kl": math.exp(-0.5) + 0.5 - 1}, rel=1e-4)
    plain = new(folder, rt, ObjectiveConfig())
    (expected,) = plain.train(rows())
    assert (stats.loss, stats.grad_norm) == (expected.loss, expected.grad_norm)
    assert expected.figures == {}


def test_an_update_makes_the_better_answer_likelier_and_the_worse_one_less_likely(
    policy: MegatronPolicy,
) -> None:
    batch = [
        TrainingRow(prompts()[r.group].token_ids, r.token_ids, 1.0 - 2 * r.index, r.log_probs)
        for r in sampled(policy)[:6]
    ]
    before = response_log_probs(policy.trainer, batch, Split(2))
    assert policy.step(batch, 1e-4).figures["clip_fraction"] == 0
    after = response_log_probs(policy.trainer, batch, Split(2))
    for row, old, new in zip(batch, before, after, strict=True):
        assert (sum(new) > sum(old)) == (row.weight > 0)
    fractions = [policy.train(batch)[0].figures["clip_fraction"] for _ in range(4)]
    assert 0 < fractions[-1] <= 1
