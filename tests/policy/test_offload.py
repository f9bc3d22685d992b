"""Optimizer states that wait in the CPU's memory: the same bits, and memory that is really given up.

Here a CPU's memory is taken to be a device's, beside that of the CPU; on a GPU see `tests/gpu`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import optimizer as optimizers
from megatron.core.optimizer import distrib_optimizer

from rs_aligner.config import TrainRSConfig
from rs_aligner.model.activations import Lengths
from rs_aligner.model.host_memory import Copy
from rs_aligner.model.memory import Memory, memory_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import offload
from rs_aligner.policy.adam_states import parts_of
from rs_aligner.policy.offload import NOTHING, Offloading
from rs_aligner.policy.policy import MegatronPolicy
from tests.policy.layout_program import rows
from tests.policy.offloaded import bytes_there, life, new, same, sampled, states, taken_to_be_apart
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)

WAYS = {
    "while sampling": Offloading(while_sampling=True),
    "all, and gradients": Offloading(while_sampling=True, fraction=1.0),
    "half, the rest while sampling": Offloading(while_sampling=True, fraction=0.5),
}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "ordinary": {"precision": "bf16", "optim": {"name": "adam"}},
}
"""Adapters, on two ranks, are in `test_memory.py`."""
TRIED = {
    "fp32": ["half, the rest while sampling"],
    "bf16": ["while sampling", "all, and gradients"],
    "ordinary": ["while sampling"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("offload"))


@pytest.fixture(scope="module")
def plain(folder: Path, rt: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every kind does with all of it where it is."""
    return {
        kind: life(folder, tmp_path_factory.mktemp("plain"), rt, NOTHING, **how)
        for kind, how in KINDS.items()
    }


def planned_for(policy: MegatronPolicy, folder: Path, how: Offloading) -> Memory:
    """The plan of such a training on a GPU."""
    tree = {
        "exp_manager": {"explicit_log_dir": "unused"},
        "pretrained_checkpoint": {"restore_from_path": str(folder)},
        "model": {
            "data": {"data_prefix": {"train": "unused"}},
            "rs": {"offload_adam_states": how.while_sampling, "kl_samples": 0},
            "optim": {"offload_fraction": how.fraction},
        },
    }
    config = TrainRSConfig.model_validate(tree)
    return memory_of(policy.arch, config, Lengths(30, 2, 20), bf16=True, on_gpu=True)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_to_be_apart(monkeypatch)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in TRIED.items() for way in ways])
def test_no_bit_depends_on_where_states_wait(
    folder: Path,
    rt: Runtime,
    plain: dict[str, dict[str, Any]],
    tmp_path: Path,
    apart: None,
    kind: str,
    way: str,
) -> None:
    found = life(folder, tmp_path, rt, WAYS[way], **KINDS[kind])
    assert [case for case, value in plain[kind].items() if not same(value, found[case])] == []


def test_memory_is_given_up_while_rollouts_are_sampled_and_nothing_else_is_lost(
    folder: Path, rt: Runtime, apart: None
) -> None:
    policy = new(folder, rt, WAYS["while sampling"], **KINDS["bf16"])
    trained = sum(one.numel() for one in policy.model.parameters())
    assert {name: bytes_there(found) for name, found in states(policy).items()} == {
        "averages": 0,  # no step was made
        "masters": 4 * trained,
        "gradients": 0,
    }
    policy.train(rows())
    held, planned = states(policy), planned_for(policy, folder, WAYS["while sampling"])
    whole = {"averages": 8 * trained, "masters": 4 * trained, "gradients": held["gradients"][0].nbytes}
    assert {name: bytes_there(found) for name, found in held.items()} == whole
    assert planned.away == pytest.approx(
        sum(whole.values()), rel=0.02
    )  # buffers are filled up to round sizes
    assert planned.held == planned.weights + planned.away
    sampled(policy)
    assert [bytes_there(found) for found in held.values()] == [0, 0, 0]
    policy.reference_log_probs(rows())  # forward passes
    assert [bytes_there(found) for found in held.values()] == [0, 0, 0]
    policy.trainer.gradients(rows(), split=policy.split)
    assert [bytes_there(found) for found in held.values()] == [0, 0, whole["gradients"]]
    policy.trainer.update(1e-3)
    assert {name: bytes_there(found) for name, found in held.items()} == whole


def test_states_come_in_by_pieces_and_only_for_the_update(
    folder: Path, rt: Runtime, apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = new(folder, rt, Offloading(fraction=1.0), **KINDS["bf16"])
    held = states(policy)
    trained = sum(one.numel() for one in policy.model.parameters())
    largest = max(one.numel() for one in policy.model.parameters())
    assert [bytes_there(found) for found in held.values()] == [0, 0, 0]
    seen, [part] = [], parts_of(policy.trainer.optimizer)
    step = part.optimizer.step

    def seen_step() -> None:
        seen.append(bytes_there([*held["averages"], *held["masters"]]))
        step()

    monkeypatch.setattr(part.optimizer, "step", seen_step)
    policy.step(rows(), 1e-3)
    assert [bytes_there(held[name]) for name in ("averages", "masters")] == [0, 0]
    assert len(seen) > 3
    assert sum(seen) == 12 * trained
    assert max(seen) <= 12 * (offload.PIECE + largest)
    planned = planned_for(policy, folder, Offloading(fraction=1.0))
    assert (planned.optimizer, planned.waiting) == (0, 12 * trained)
    assert planned.step >= max(seen)
    policy = new(folder, rt, Offloading(fraction=0.5), **KINDS["bf16"])
    policy.train(rows())
    half = states(policy)
    there = bytes_there([*half["averages"], *half["masters"]])
    planned = planned_for(policy, folder, Offloading(fraction=0.5))
    assert planned.optimizer - 12 * largest <= there <= planned.optimizer == 6 * trained


def test_what_is_moved_is_24_bytes_a_parameter_and_nothing_for_what_has_not_changed(
    folder: Path, rt: Runtime, tmp_path: Path, apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = {"out": 0, "in": 0}
    for name, way in (("save", "out"), ("restore", "in")):
        inner = getattr(Copy, name)

        def counted(self: Copy, tensor: torch.Tensor, inner: Any = inner, way: str = way) -> None:
            moved[way] += tensor.nbytes
            inner(self, tensor)

        monkeypatch.setattr(Copy, name, counted)

    def now() -> tuple[float, float]:
        found = moved["out"] / trained, moved["in"] / trained
        moved.update({"out": 0, "in": 0})
        return found

    policy = new(folder, rt, Offloading(fraction=1.0), **KINDS["bf16"])
    trained = sum(one.numel() for one in policy.model.parameters())
    now()
    policy.step(rows(), 1e-3)
    assert now() == (12, 12)
    policy.save(tmp_path / "pieces", {})
    assert now() == (0, 12)  # read where they are
    policy = new(folder, rt, WAYS["while sampling"], **KINDS["bf16"])
    policy.train(rows())
    now()
    sampled(policy)
    policy.train(rows())
    assert now() == (12, 12)  # whatever the number of its optimizer steps
    sampled(policy)
    now()
    policy.save(tmp_path / "whole", {})
    assert now() == (0, 12)
    sampled(policy)
    assert now() == (0, 0)


def test_pieces_are_of_torchs_adam_whatever_is_installed(
    folder: Path, rt: Runtime, apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"HAVE_APEX_OR_TE": True, "USING_TE_OPTIMIZER": True, "USING_APEX_OPTIMIZER": False}
    for name, value in installed.items():
        monkeypatch.setattr(distrib_optimizer, name, value)
    monkeypatch.setattr(optimizers, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(optimizers, "Adam", None)  # cannot be built
    [part] = parts_of(new(folder, rt, Offloading(fraction=0.5)).trainer.optimizer)
    assert isinstance(part.optimizer, torch.optim.AdamW)
    assert not distrib_optimizer.HAVE_APEX_OR_TE


def test_on_a_cpu_it_has_no_effect_and_is_said(
    folder: Path, rt: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "rs_aligner"):
        policy = new(folder, rt, WAYS["half, the rest while sampling"])
    assert sum("has no effect" in message for message in caplog.messages) == 1
    sampled(policy)
    assert bytes_there(states(policy)["gradients"]) > 0
