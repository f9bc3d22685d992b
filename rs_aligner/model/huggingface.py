"""Weights in and out of Hugging Face folders, for any tensor- and pipeline-parallel layout.

Each Megatron parameter stands for one or more Hugging Face tensors; the model's family has the table. A
`Layout` says how a rank's part is cut from them and how the ranks' parts are put together again. Reading
touches only this rank's tensors; writing makes one file for each pipeline stage, so no rank ever holds more
than its own stage.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rs_aligner.files import read_json_object, sync_folder, sync_tree
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.layouts import Layout
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import DTYPES, INDEX, WHOLE, Stored, check_tensors, read_headers
from rs_aligner.model_folder import belongs_to_a_model

_logger = logging.getLogger("rs_aligner")
_DTYPE_KEYS = ("dtype", "torch_dtype")  # in a config.json; before version 5 of transformers it was the second
_EXPORTED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _parameters(
    model: GPTModel, arch: Architecture, runtime: Runtime
) -> Iterator[tuple[torch.nn.Parameter, tuple[str, ...], Layout]]:
    """This rank's parameters, each with its Hugging Face names and how it is cut."""
    family = family_of(arch)
    layer, outside = family.layer(arch), family.outside(arch)
    first_layer = runtime.pp_rank * (arch.num_layers // runtime.pp_size)
    for name, parameter in model.named_parameters():
        if name in outside:
            prefix, part = "", outside[name]
        else:
            local, _, rest = name.removeprefix("decoder.layers.").partition(".")
            prefix, part = family.layers.format(first_layer + int(local)), layer[rest]
        yield parameter, tuple(prefix + each for each in part.tensors), part.layout


@torch.no_grad()
def load_weights(
    folder: Path, model: GPTModel, arch: Architecture, runtime: Runtime, *, leave: Collection[str] = ()
) -> None:
    """Copy a Hugging Face folder's weights into this rank's part of the model.

    Args:
        leave: Hugging Face names of tensors that stay as they are.

    Raises:
        ValueError: the folder has not just the tensors of such a model, as `check_tensors` says, or one of
            them cannot be what was trained, on whichever rank.
    """
    stored = check_tensors(folder, arch, leave=leave)

    def load() -> None:
        for parameter, names, layout in _parameters(model, arch, runtime):
            if leave and not set(names).isdisjoint(leave):
                continue
            tensors = [_read(stored[name], name) for name in names]
            parameter.copy_(layout.cut(tensors, runtime.tp_rank, runtime.tp_size))

    runtime.together(load)


def _read(stored: Stored, name: str) -> torch.Tensor:
    """A tensor of a file.

    Raises:
        ValueError: it cannot be read, has numbers that are none, or is zero where no trained model is.
    """
    try:
        with safe_open(stored.file, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.file} is damaged ({error}): fetch it again") from None
    low, high = (float(bound) for bound in torch.aminmax(tensor))  # either is NaN where anything is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{stored.file}: {name} has numbers that are not finite: fetch it again")
    if low == high == 0 and not name.endswith(".bias") and name != SCORE:  # a head may begin at zero
        raise ValueError(f"{stored.file}: {name} is all zero, which no trained model's is: fetch it again")
    return tensor


def export_dtype(source: Path) -> torch.dtype:
    """The type of the weights that are made of `source`: the one that its `config.json` names.

    Where it names none that weights are trained from, it is that of its files, else float32.
    """
    config = read_json_object(source / "config.json")
    for key in _DTYPE_KEYS:
        if (named := str(config.get(key)).removeprefix("torch.")) in _EXPORTED:
            return _EXPORTED[named]
    try:
        stored = read_headers(source).values()
    except ValueError:  # in a checkpoint there is none
        return torch.float32
    return _EXPORTED.get(DTYPES.get(next(iter(stored)).dtype, ""), torch.float32)


@torch.no_grad()
def save_weights(
    folder: Path,
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    source: Path,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write the model as a Hugging Face folder: weights here, config and tokenizer copied from `source`.

    Every rank must call it. The folder appears whole, under its name, or not at all. The weights have the
    type that `source` names (`export_dtype`), whatever they were trained in, and `config.json` says so.
    `changes` are keys of `config.json` to be set.

    Raises:
        OSError: a rank cannot write it; every rank raises it.
    """
    partial = folder.with_name(folder.name + ".partial")
    tensors = gather_tensors(model, arch, runtime)
    if arch.tied_embeddings and not runtime.is_first_stage:
        tensors.pop(family_of(arch).embedding, None)
    dtype = _fitting(export_dtype(source), tensors, runtime)
    trained = model.config.params_dtype

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        copy_all_but_weights(source, partial, dtype, changes)
        if torch.finfo(dtype).bits < torch.finfo(trained).bits:
            _logger.info(
                "%s is rounded to %s, the type of the model it came from; checkpoints keep %s",
                *(folder, _name(dtype), _name(trained)),
            )

    runtime.together(begin, first_only=True)
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)
    file = WHOLE
    if runtime.pp_size > 1:
        file = f"model-{runtime.pp_rank + 1:05d}-of-{runtime.pp_size:05d}.safetensors"
    writes = runtime.dp_rank == 0 and runtime.tp_rank == 0
    runtime.together(lambda: _write_tensors(partial / file, tensors) if writes else None)
    _write_index(partial, file, tensors, runtime)

    def finish() -> None:
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync_folder(folder.parent)

    runtime.together(finish, first_only=True)


def _write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # of the system's errors it keeps the words and not the number
        full = shutil.disk_usage(file.parent).free < sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(file)) from None


def _fitting(dtype: torch.dtype, tensors: Mapping[str, torch.Tensor], runtime: Runtime) -> torch.dtype:
    """The type, or float32 where a weight on any rank is too large for it."""
    largest = max(float(tensor.abs().max()) for tensor in tensors.values())
    largest = runtime.maximum({"largest": largest})["largest"]
    if largest > torch.finfo(dtype).max:
        _logger.warning(
            "a weight has grown to %g, too much for %s: float32 is written", largest, _name(dtype)
        )
        return torch.float32
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def copy_all_but_weights(
    source: Path, folder: Path, dtype: torch.dtype, changes: Mapping[str, Any] | None = None
) -> None:
    """Copy config, tokenizer and chat template of a Hugging Face folder, with changes to the config.

    The config names `dtype` as the weights' type, under the key or keys that it had for it. An `eos_token_id`
    among the changes goes into `generation_config.json`, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if belongs_to_a_model(path) and path.suffix != ".safetensors" and path.name != INDEX:
            shutil.copyfile(path, folder / path.name)
    config = read_json_object(source / "config.json")
    keys = [key for key in _DTYPE_KEYS if key in config] or _DTYPE_KEYS[:1]
    changed = {**config, **dict.fromkeys(keys, _name(dtype)), **(changes or {})}
    if changed != config:
        (folder / "config.json").write_text(json.dumps(changed, indent=2) + "\n")
    if "eos_token_id" in (changes or {}):
        _name_end_tokens(folder, changed)


def _name_end_tokens(folder: Path, config: Mapping[str, Any]) -> None:
    """Give the end tokens of a config.json to generation_config.json, which is what engines stop by."""
    path = folder / "generation_config.json"
    known = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    made = read_json_object(path) if path.is_file() else known
    path.write_text(json.dumps({**made, "eos_token_id": config["eos_token_id"]}, indent=2) + "\n")


def gather_tensors(
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    of: Callable[[torch.nn.Parameter], torch.Tensor] = torch.nn.Parameter.detach,
) -> dict[str, torch.Tensor]:
    """This stage's tensors under their Hugging Face names, put together from its tensor-parallel ranks.

    Args:
        of: what to take of each parameter: the weights, or something of their shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    group = parallel_state.get_tensor_model_parallel_group()
    for parameter, names, layout in _parameters(model, arch, runtime):
        mine = of(parameter).contiguous()
        shards = [torch.empty_like(mine) for _ in range(runtime.tp_size)]
        dist.all_gather(shards, mine, group=group)
        whole = layout.join([shard.cpu() for shard in shards])
        tensors.update((name, tensor.contiguous().clone()) for name, tensor in zip(names, whole, strict=True))
    return tensors


def _write_index(folder: Path, file: str, tensors: dict[str, torch.Tensor], runtime: Runtime) -> None:
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    everyone: list[tuple[str, dict[str, int]]] = [("", {})] * runtime.world_size
    dist.all_gather_object(everyone, (file, sizes), group=runtime.objects)
    if runtime.rank == 0 and runtime.pp_size > 1:
        weight_map = {name: shard for shard, names in everyone for name in names}
        total = sum({name: size for _, names in everyone for name, size in names.items()}.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
