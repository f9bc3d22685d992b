"""Training checkpoints in the format of Megatron's `dist_checkpointing`: weights, optimizer, counters.

One folder a checkpoint, `step_000010`, which appears under that name only when it is whole and on the disk,
with a manifest of what is in it. It is seen through before anything of it is loaded. Left out on purpose:
saving in the background (docs/design.md has the figures), and which checkpoints stay (`record.run`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import (
    CONFIG_FNAME,
    CheckpointingConfig,
    CheckpointingException,
    save_config,
)
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import torch as megatron_torch
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from rs_aligner.files import CHECKPOINT_PART, hugging_face_part, make_folder, sync_folder, sync_tree
from rs_aligner.model.adapter_folder import check_scheme, write_adapter_config
from rs_aligner.model.expert_shares import is_shared_out
from rs_aligner.model.folder_copy import copy_all_but_weights, export_dtype
from rs_aligner.model.lora import Adapters
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.adam_states import adopt, begin, bridged, parts_of
from rs_aligner.policy.checkpoint_files import SummedFiles, Writer, read_common, read_metadata
from rs_aligner.policy.training import BaseTrainer
from rs_aligner.record import manifest
from rs_aligner.record.manifest import PARTIAL, REPLACED, BrokenCheckpoint, CannotSave, Manifest, Stored
from rs_aligner.record.room import check_room

# The one format of Megatron's distributed optimizer that loads in another tensor-, pipeline- or
# data-parallel layout than it was saved in. "mem_efficient": its state is gathered on the first
# replica, which writes it, and not on all of them. "avoid_prefix": that of experts that are shared out, which
# have an optimizer of their own, has the same names as where they are not.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}
_OPTIMIZER_BYTES = 12  # a parameter: its float32 twin and Adam's two averages
_GATHERED = "param_state"
_HEAD = "output_layer.weight"


def _state(trainer: BaseTrainer, is_loading: bool) -> dict[str, Any]:
    model = trainer.trained.sharded_state_dict()
    optimizer = trainer.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_METADATA)
    _leave_out_what_is_elsewhere(optimizer)
    return {"model": model, "optimizer": optimizer}


def _leave_out_what_is_elsewhere(state: Any) -> None:
    """Take out the places of what the first replica alone holds; Megatron warns that they differ."""
    for part in state.values() if isinstance(state, dict) else ():
        _leave_out_what_is_elsewhere(part)
    if isinstance(state, dict) and state.get(_GATHERED, 0) is None:
        del state[_GATHERED]


def save(
    folder: Path,
    trainer: BaseTrainer,
    runtime: Runtime,
    counters: dict[str, Any],
    source: Path,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; every rank must call it with the same plain `counters`.

    Of a model with adapters it holds these and what else is trained, with their optimizer, and not the model.

    The config and tokenizer of `source`, a Hugging Face folder, go with it, so that it can be used
    without the folder that the run started from. `changes` are keys of its `config.json` to be set. The
    checkpoint is written beside, synced and seen through before it has its name: whatever happens on the way,
    there is a whole one or none.

    Raises:
        CannotSave: it could not be written, on whichever rank; every rank raises it, and nothing is left.
    """
    # A name that no other process writes under: an owner of the run that was stopped may wake up behind the
    # next one, and finds its own gone.
    partial = folder.with_name(f"{folder.name}.{runtime.everyone(secrets.token_hex(4))[0]}{PARTIAL}")
    wanted = state_bytes(trainer, runtime)
    with _whole_or_none(folder, partial, runtime):
        runtime.together(lambda: _begin_folder(partial, wanted, trainer), first_only=True)
        trainer.offload.states_here(changes=False)
        for part in parts_of(trainer.optimizer):
            begin(part)
        with runtime.cuda_stand_in():
            sharded, common = save_preprocess({**_state(trainer, False), "counters": counters})
            stored = _write_tensors(partial, sharded, runtime)
        del sharded
        stored = {name: one for rank in runtime.everyone(stored) for name, one in rank.items()}
        runtime.together(
            lambda: _finish(partial, folder, stored | _write_rest(partial, common, source, changes)),
            first_only=True,
        )


@contextmanager
def _whole_or_none(folder: Path, partial: Path, runtime: Runtime) -> Iterator[None]:
    """Save so that what fails is told in one line and leaves nothing."""
    try:
        yield
    except (OSError, MemoryError, ValueError, CheckpointException) as error:
        if runtime.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(cause := _cause(error), Exception):  # torch catches an interrupt, too
            raise cause from None
        raise CannotSave(f"{folder} cannot be written: {_reason(cause)}") from error


def _cause(error: BaseException) -> BaseException:
    """What went wrong on the first of the ranks on which something did."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)


def state_bytes(trainer: BaseTrainer, runtime: Runtime) -> int:
    """About as many bytes as a checkpoint has, the same on every rank; every rank must call it."""
    parts = [one for one in trainer.ddp.module.parameters() if one.requires_grad]  # the rest is in the base
    mine = sum(
        part.numel() * (part.element_size() + _OPTIMIZER_BYTES)
        for part in parts
        if runtime.dp_rank < (runtime.ep_size if is_shared_out(part) else 1)
    )
    return sum(runtime.everyone(mine))


def _begin_folder(partial: Path, wanted: int, trainer: BaseTrainer) -> None:
    make_folder(partial / CHECKPOINT_PART)
    check_room(partial, wanted)
    write_adapter_config(partial / CHECKPOINT_PART, trainer.adapters)


def _write_tensors(partial: Path, sharded: dict[str, Any], runtime: Runtime) -> dict[str, Stored]:
    """This rank's tensors, and on the first rank their description; returns what its files hold."""
    by_key, _, _ = megatron_torch._replace_state_dict_keys_with_sharded_keys(
        sharded, keep_only_main_replica=True
    )
    writer = Writer(partial)
    planner = megatron_torch.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    tensors = megatron_torch.mcore_to_pyt_state_dict(by_key, False)
    dcp.save(tensors, storage_writer=writer, planner=planner, process_group=runtime.objects)
    for holder in (tensors, by_key, planner.state_dict):
        holder.clear()  # torch's closures hold them in a circle, until the garbage collector comes by
    return writer.files.stored


def _write_rest(
    partial: Path, common: dict[str, Any], source: Path, changes: Mapping[str, Any] | None
) -> dict[str, Stored]:
    """What is not cut into shards, and what makes the checkpoint a model of its own."""
    files = SummedFiles()
    with files.create_stream(partial / COMMON_STATE_FNAME, "wb") as stream:
        torch.save(common, stream)
    save_config(CheckpointingConfig("torch_dist", 1), str(partial))
    dtype = export_dtype(source)  # of what is made of it; the checkpoint itself keeps its own
    copy_all_but_weights(source, partial / CHECKPOINT_PART, dtype, changes)
    small = [f"{CHECKPOINT_PART}/{name}" for name in manifest.files_below(partial / CHECKPOINT_PART)]
    return files.stored | {name: manifest.look(partial / name) for name in (CONFIG_FNAME, *small)}


def _finish(partial: Path, folder: Path, stored: dict[str, Stored]) -> None:
    """Give a checkpoint its name, if all of it is there."""
    manifest.write(partial, Manifest(manifest.step_of(folder), stored))
    sync_tree(partial)
    if (problem := manifest.problem_with(partial, contents=False)) is not None:
        raise ValueError(problem)
    replaced = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        folder.rename(replaced)  # a start that finds only this takes it back
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def problem_with(folder: Path, runtime: Runtime) -> str | None:
    """Why a checkpoint cannot be loaded, the same on every rank; None if it can.

    Every rank must call it. All of the checkpoint is read, each rank a share of its files.
    """
    found = manifest.problem_with(folder, share=runtime.rank, shares=runtime.world_size)
    if found is None and runtime.rank == 0:
        try:
            read_metadata(folder)
            read_common(folder)
        except BrokenCheckpoint as error:
            found = str(error)
    problems = [problem for problem in runtime.everyone(found) if problem is not None]
    return "; ".join(dict.fromkeys(problems)) or None


def check(folder: Path, runtime: Runtime) -> None:
    """See to it that a checkpoint can be loaded; every rank must call it.

    Raises:
        BrokenCheckpoint: it cannot, on any rank.
    """
    if (problem := problem_with(folder, runtime)) is not None:
        raise BrokenCheckpoint(f"{folder} is no good checkpoint: {problem}")


def _read(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is wanted of a checkpoint that is whole.

    Raises:
        ValueError: it is of another model, or its tensors were not written by us.
    """
    try:
        found: dict[str, Any] = dist_checkpointing.load(wanted, str(folder))
    except (CheckpointException, CheckpointingException) as error:
        reason = _reason(_cause(error)).strip().partition("\n")[0]
        raise ValueError(f"{folder} does not fit this model: {reason}") from error
    return found


def load(folder: Path, trainer: BaseTrainer, runtime: Runtime) -> dict[str, Any]:
    """Load a checkpoint into model and optimizer; returns the counters it was saved with.

    Raises:
        BrokenCheckpoint: it is not whole, or holds what has no business there; nothing is changed.
        ValueError: it is of another model, or of other adapters.
    """
    check(folder, runtime)
    check_scheme(hugging_face_part(folder), trainer.adapters)
    trainer.offload.states_here(changes=True)
    with runtime.cuda_stand_in(), torch.no_grad(), bridged(trainer.optimizer):
        state = _read(_state(trainer, True), folder)
        adopt(state["optimizer"], trainer.optimizer)
        trainer.trained.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
    counters: dict[str, Any] = state["counters"]
    return counters


def load_weights(
    folder: Path, model: GPTModel | Adapters, runtime: Runtime, *, with_head: bool = True
) -> None:
    """Load only the weights of a checkpoint, or its adapters; without its output layer, if another is there.

    Raises:
        BrokenCheckpoint: as `load`.
    """
    check(folder, runtime)
    with runtime.cuda_stand_in(), torch.no_grad():
        wanted = model.sharded_state_dict()
        if not with_head:
            wanted.pop(_HEAD, None)
        state = _read({"model": wanted}, folder)["model"]
        if not with_head and _HEAD in (own := model.state_dict()):
            state[_HEAD] = own[_HEAD]
        model.load_state_dict(state)
