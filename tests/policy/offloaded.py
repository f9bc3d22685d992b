"""A short life of a policy, with its optimizer's states where they are told to be.

On one rank for `test_offload.py` itself, on two by `memory_program.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.config import LengthParams, PolicyModelBase, SamplingParams
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import offload
from rs_aligner.policy.adam_states import parts_of
from rs_aligner.policy.offload import Offloading
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.record import manifest
from rs_aligner.sample_request import SampleRequest
from tests.policy.layout_program import prompts, rows
from tests.policy.objective_cases import NoText


def new(
    folder: Path, rt: Runtime, how: Offloading, *, precision: str = "fp32", **model: Any
) -> MegatronPolicy:
    tree = {
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "data": {"data_prefix": {"train": "unused"}},
        "tensor_model_parallel_size": rt.tp_size,
        **model,
    }
    tokenizer: Any = NoText()
    return MegatronPolicy(
        *(folder, PolicyModelBase.model_validate(tree), rt, tokenizer),
        optimization=Optimization(lambda step: 1e-2 / (step + 1), precision, offload=how),
        keep_start=True,
    )


def sampled(policy: MegatronPolicy) -> list[Any]:
    asked = SampleRequest(prompts(), 2, SamplingParams(), LengthParams(max_length=6), step=1)
    return sorted((one.group, one.index, one.token_ids, one.log_probs) for one in policy.generate(asked))


def life(folder: Path, work: Path, rt: Runtime, how: Offloading, **model: Any) -> dict[str, Any]:
    """What a policy samples, learns and saves, goes back to and goes on from."""
    policy = new(folder, rt, how, **model)
    found: dict[str, Any] = {"at the start": sampled(policy), "first": policy.train(rows())}
    found["after a step"] = sampled(policy)
    policy.save(work / "step_000001", {})  # while everything is away
    found["reference"] = policy.reference_log_probs(rows())
    found["second"] = policy.train(rows()), weights(policy)
    policy.save(work / "step_000002", {})
    sampled(policy)
    policy.restart()
    found["restarted"] = policy.train(rows()), weights(policy)
    sampled(policy)
    policy.load(work / "step_000001")
    found["loaded"] = policy.train(rows()), weights(policy)
    later = new(folder, rt, how, **model)
    later.load(work / "step_000001")
    found["continued"] = sampled(later), later.train(rows()), weights(later)
    rt.barrier()
    found["files"] = [manifest.read(work / f"step_{step:06d}").files for step in (1, 2)]
    return found


def weights(policy: MegatronPolicy) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in policy.model.named_parameters()}


def same(one: Any, other: Any) -> bool:
    """To the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def taken_to_be_apart(patch: pytest.MonkeyPatch) -> None:
    """A CPU's memory counts as a device's, and pieces are small."""
    patch.setattr(offload, "is_apart", lambda device: True)
    patch.setattr(offload, "PIECE", 4000)


def states(policy: MegatronPolicy) -> dict[str, list[torch.Tensor]]:
    """Adam's averages, its own float32 weights, and DDP's gradients, where there are any."""
    found: dict[str, list[torch.Tensor]] = {"averages": [], "masters": []}
    for part in parts_of(policy.trainer.optimizer):
        kept = {one.untyped_storage().data_ptr() for one in policy.model.parameters()}
        for group in part.optimizer.param_groups:
            for main in group["params"]:
                if main.untyped_storage().data_ptr() not in kept:
                    found["masters"].append(main)
                state = part.optimizer.state[main]
                found["averages"] += [one for one in state.values() if one.dim()]
    found["gradients"] = [buffer.grad_data for buffer in policy.trainer.ddp.buffers]
    return found


def bytes_there(tensors: list[torch.Tensor]) -> int:
    return sum(one.untyped_storage().nbytes() for one in tensors)
