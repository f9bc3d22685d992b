"""Training checkpoints by Megatron's `dist_checkpointing`: weights, optimizer, and the run's counters.

One folder a checkpoint, `step_000010`, which appears under that name only when it is complete. The
folder's name is for people; what a run continues from is read from inside.
"""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from rs_aligner.files import CHECKPOINT_PART
from rs_aligner.model import huggingface
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.training import BaseTrainer

# The one format of Megatron's distributed optimizer that loads in another tensor-, pipeline- or
# data-parallel layout than it was saved in.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_HEAD = "output_layer.weight"


def _state(trainer: BaseTrainer, is_loading: bool) -> dict[str, Any]:
    model = trainer.ddp.module.sharded_state_dict()
    optimizer = trainer.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_METADATA)
    return {"model": model, "optimizer": optimizer}


def _adams(trainer: BaseTrainer) -> list[MegatronOptimizer]:
    """Megatron's optimizers that have torch's Adam inside (and not Apex's or TE's)."""
    parts = getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])
    return [part for part in parts if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW)]


def _begin(part: MegatronOptimizer) -> None:
    """Give Adam the state that it would give itself in its first step; Megatron cannot save without."""
    for parameter in (p for group in part.optimizer.param_groups for p in group["params"]):
        if not part.optimizer.state[parameter]:
            part.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _add_step_of_zero(state: Any) -> None:
    """Megatron leaves Adam's common step out of a checkpoint where it is 0, and misses it when it loads."""
    if not isinstance(state, dict):
        return
    if "state" in state and "param_groups" in state:
        state["state"].setdefault("common_step", torch.zeros(()))
        return
    for part in state.values():
        _add_step_of_zero(part)


@contextmanager
def _adam_of_torch(trainer: BaseTrainer) -> Iterator[None]:
    """Bridge three gaps between Megatron's distributed optimizer and torch's Adam while loading.

    Megatron reads Adam's `step` before there is any state; expects it among each parameter's loaded
    tensors, where its format does not put it (it comes with the parameter groups); and gives all
    parameters one and the same `step` tensor, which each of them would then count up.
    """
    parts = [part for part in _adams(trainer) if isinstance(part, DistributedOptimizer)]
    for part in parts:
        _begin(part)

        def with_step(parameter: Any, tensors: dict[str, Any], part: DistributedOptimizer = part) -> None:
            step = part._get_main_param_and_optimizer_states(parameter).get("step")
            known = {} if step is None else {"step": step}
            DistributedOptimizer._set_main_param_and_optimizer_states(part, parameter, {**known, **tensors})

        part._set_main_param_and_optimizer_states = with_step
    try:
        yield
    finally:
        for part in parts:
            del part._set_main_param_and_optimizer_states
            for state in part.optimizer.state.values():
                state["step"] = state["step"].clone()


def save(
    folder: Path,
    trainer: BaseTrainer,
    runtime: Runtime,
    counters: dict[str, Any],
    source: Path,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; every rank must call it with the same plain `counters`.

    The config and tokenizer of `source`, a Hugging Face folder, go with it, so that it can be used
    without the folder that the run started from. `changes` are keys of its `config.json` to be set.
    """
    partial = folder.with_name(folder.name + ".partial")
    if runtime.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    runtime.barrier()
    for part in _adams(trainer):
        _begin(part)
    _write_from_this_process()
    with runtime.cuda_stand_in():
        dist_checkpointing.save({**_state(trainer, False), "counters": counters}, str(partial))
    runtime.barrier()
    if runtime.rank == 0:
        dtype = huggingface.export_dtype(source)  # of what is made of it; the checkpoint itself keeps its own
        huggingface.copy_all_but_weights(source, partial / CHECKPOINT_PART, dtype, changes)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    runtime.barrier()


def _write_from_this_process() -> None:
    """Give Megatron a queue of this process for the results of writing, which it does right here.

    Its own is held by a process that it spawns. That takes seconds, and runs the user's script a second time
    where the script does not ask for `__main__`.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def load(folder: Path, trainer: BaseTrainer, runtime: Runtime) -> dict[str, Any]:
    """Load a checkpoint into model and optimizer; returns the counters it was saved with."""
    with runtime.cuda_stand_in(), torch.no_grad(), _adam_of_torch(trainer):
        state = dist_checkpointing.load(_state(trainer, True), str(folder))
        if _adams(trainer):
            _add_step_of_zero(state["optimizer"])
        trainer.ddp.module.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
    counters: dict[str, Any] = state["counters"]
    return counters


def load_weights(folder: Path, model: GPTModel, runtime: Runtime, *, with_head: bool = True) -> None:
    """Load only the weights of a checkpoint; without its output layer, if the model has another head."""
    with runtime.cuda_stand_in(), torch.no_grad():
        wanted = model.sharded_state_dict()
        if not with_head:
            wanted.pop(_HEAD, None)
        state = dist_checkpointing.load({"model": wanted}, str(folder))["model"]
        if not with_head and _HEAD in (own := model.state_dict()):
            state[_HEAD] = own[_HEAD]
        model.load_state_dict(state)
