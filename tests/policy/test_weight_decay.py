"""Weight decay takes matrices and leaves norms and biases alone, whatever is trained and by which optimizer.

Without a gradient nothing but weight decay moves a weight. Several ranks are in `test_layouts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rs_aligner.config import OptimConfig, PairModelConfig, PolicyModelBase
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reward_model import MegatronRewardModel
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import TrainingRow
from tests.policy.objective_cases import NoText
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
NAMES = get_args(OptimConfig.model_fields["name"].annotation)
NO_TEXT: Any = NoText()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2", tmp_path_factory.mktemp("decay"))  # the family with biases


def optim(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "lr": 0.5, "weight_decay": 1.0, **keys}


def section(name: str, **keys: Any) -> dict[str, Any]:
    return {"optim": optim(name, **keys), "data": {"data_prefix": {"train": []}}}


def shares_left(model: torch.nn.Module, step: Any) -> dict[str, set[float]]:
    """By kind of tensor, what share of its weights is left behind a step, exactly."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step()
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        kind = "bias" if name.endswith(".bias") else "norm" if parameter.dim() == 1 else "matrix"
        left = parameter.detach()[before[name] != 0] / before[name][before[name] != 0]
        found.setdefault(kind, set()).update(left.flatten().tolist())
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_is_taught_nothing_keeps_its_norms_and_biases_bit_for_bit(
    folder: Path, rt: Runtime, name: str, precision: str
) -> None:
    def left(**keys: Any) -> dict[str, set[float]]:
        config = PolicyModelBase.model_validate(section(name, **keys))
        policy = MegatronPolicy(
            folder, config, rt, NO_TEXT, optimization=Optimization(lambda step: 0.5, precision)
        )
        empty = [TrainingRow((1, 2), ())]
        return shares_left(policy.trainer.ddp.module, lambda: policy.train(empty))

    assert left() == {"norm": {1.0}, "bias": {1.0}, "matrix": {0.5}}
    assert left(decay_norms_and_biases=True) == {"norm": {0.5}, "bias": {0.5}, "matrix": {0.5}}


@pytest.mark.parametrize("name", ["distributed_fused_adam", "adam"])
def test_so_does_a_reward_model(folder: Path, rt: Runtime, name: str) -> None:
    def left(**keys: Any) -> dict[str, set[float]]:
        config = PairModelConfig.model_validate(section(name, **keys))
        model = MegatronRewardModel(
            folder, config, rt, NO_TEXT, optimization=Optimization(lambda step: 0.5, "fp32")
        )
        return shares_left(model.trainer.ddp.module, lambda: model.trainer.update(0.5))

    assert left() == {"norm": {1.0}, "bias": {1.0}, "matrix": {0.5}}
    assert left(decay_norms_and_biases=True) == {"norm": {0.5}, "bias": {0.5}, "matrix": {0.5}}


def test_a_continued_run_leaves_them_alone_too(folder: Path, rt: Runtime, tmp_path: Path) -> None:
    config = PolicyModelBase.model_validate(section("distributed_fused_adam"))
    for start in (None, tmp_path / "saved"):
        policy = MegatronPolicy(folder, config, rt, NO_TEXT, optimization=Optimization(lambda _: 0.5, "fp32"))
        if start is not None:
            policy.load(start)
        empty = [TrainingRow((1, 2), ())]
        left = shares_left(policy.trainer.ddp.module, lambda policy=policy, empty=empty: policy.train(empty))
        assert left == {"norm": {1.0}, "bias": {1.0}, "matrix": {0.5}}
        policy.save(tmp_path / "saved", {}) if start is None else None
