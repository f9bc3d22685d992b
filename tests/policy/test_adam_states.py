"""A checkpoint of one Adam is continued by another: torch's, Transformer Engine's, Apex's (stand-ins)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.adam_states import parts_of
from rs_aligner.policy.offload import NOTHING, Offloading
from rs_aligner.policy.policy import MegatronPolicy
from tests.policy.fused_adam import INSTALLED, install
from tests.policy.layout_program import rows
from tests.policy.offloaded import life, new, same, taken_to_be_apart
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)

KINDS: dict[str, dict[str, Any]] = {
    "distributed": {"precision": "bf16", "optim": {"betas": [0.9, 0.8], "lr": 1e-2}},
    "ordinary": {"precision": "bf16", "optim": {"name": "adam", "betas": [0.9, 0.8]}},
    "ordinary fp32": {"optim": {"name": "adam", "betas": [0.9, 0.8]}},
}
"""Averages that forget soon, so that a step that is counted wrongly moves weights by more than a tenth."""
CASES = [
    *((kind, "torch", "te", 2) for kind in KINDS),
    *((kind, "te", "torch", 0) for kind in KINDS),
    *((kind, "torch", "te", 0) for kind in ("distributed", "ordinary")),
    ("distributed", "torch", "apex", 2),
    ("ordinary", "te", "torch", 2),
]
"""Kind of optimizer, the Adams before and after a checkpoint, and the steps before it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("adams"))


def masters(policy: MegatronPolicy) -> list[torch.Tensor]:
    """What Adam steps, in float32."""
    parts = parts_of(policy.trainer.optimizer)
    return [
        one.detach().clone()
        for part in parts
        for group in part.optimizer.param_groups
        for one in group["params"]
    ]


@pytest.mark.parametrize(("kind", "before", "after", "steps"), CASES)
def test_a_checkpoint_of_one_adam_is_continued_by_another(
    folder: Path,
    rt: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
    kind: str,
    steps: int,
) -> None:
    install(monkeypatch, before)
    policy = new(folder, rt, NOTHING, **KINDS[kind])
    for _ in range(steps):
        policy.step(rows(), 1e-2)
    policy.save(tmp_path / "step_000001", {})
    policy.step(rows(), 1e-2)
    expected = masters(policy)
    install(monkeypatch, after)
    other = new(folder, rt, NOTHING, **KINDS[kind])
    other.load(tmp_path / "step_000001")
    begun = masters(other)
    [part] = parts_of(other.trainer.optimizer)
    adam = INSTALLED[after] or torch.optim.AdamW
    assert type(part.optimizer) is adam
    other.step(rows(), 1e-2)
    moved = torch.cat([(one - was).flatten() for one, was in zip(expected, begun, strict=True)])
    off = torch.cat([(one - is_now).flatten() for one, is_now in zip(expected, masters(other), strict=True)])
    assert off.norm() < 1e-4 * moved.norm()
    other.save(tmp_path / "step_000002", {})  # and back
    install(monkeypatch, before)
    again = new(folder, rt, NOTHING, **KINDS[kind])
    again.load(tmp_path / "step_000002")
    assert all(map(torch.equal, masters(again), masters(other)))


def test_states_of_a_fused_adam_wait_as_well_while_rollouts_are_sampled(
    folder: Path, rt: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "te")
    plain = life(folder, tmp_path / "plain", rt, NOTHING, **KINDS["distributed"])
    taken_to_be_apart(monkeypatch)
    found = life(folder, tmp_path / "away", rt, Offloading(while_sampling=True), **KINDS["distributed"])
    assert [case for case, value in plain.items() if not same(value, found[case])] == []
