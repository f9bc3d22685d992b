"""Weights in and out of Hugging Face folders, for any parallel layout.

Each Megatron parameter stands for one or more Hugging Face tensors; the model's family has the table. A
`Layout` says how a rank's part is cut from them and how the ranks' parts are put together again. Reading
touches only this rank's part of each tensor, and writing makes one file for each pipeline stage, or for each
share of its experts; either way no rank holds more than one parameter's tensors besides the model, and in
writing only ranks that write do.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError

from rs_aligner.files import sync_folder, sync_tree
from rs_aligner.model.architecture import UNIT_NORMS, Architecture
from rs_aligner.model.expert_shares import is_shared_out, whole_name
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import family_of, read_architecture
from rs_aligner.model.folder_copy import copy_all_but_weights, dtype_name, export_dtype
from rs_aligner.model.layouts import Layout, Place
from rs_aligner.model.lora import is_adapter
from rs_aligner.model.new_rows import read_rows
from rs_aligner.model.opened import open_tensors
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.stored import Stored
from rs_aligner.model.tensor_file import TensorFile
from rs_aligner.model.tensors import INDEX, WHOLE, check_tensors, unread_bins

_logger = logging.getLogger("rs_aligner")


class Piece(NamedTuple):
    """A parameter of this rank, and the tensors that it stands for.

    Attributes:
        parameter: this rank's part.
        shapes: the whole tensors' shapes, by their Hugging Face names.
        layout: how it is cut from them.
    """

    parameter: torch.nn.Parameter
    shapes: Mapping[str, tuple[int, ...]]
    layout: Layout


def _pieces(model: GPTModel, arch: Architecture, runtime: Runtime) -> Iterator[Piece]:
    """This rank's parameters, in the order that all ranks of its stage have."""
    family = family_of(arch)
    outside = family.outside(arch)
    layers = [family.layer(one) for one in arch.stage(runtime.pp_rank, runtime.pp_size)]
    first = runtime.pp_rank * len(layers)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        if name in outside:
            prefix, part = "", outside[name]
        else:
            local, _, rest = name.removeprefix("decoder.layers.").partition(".")
            prefix = family.layers.format(first + int(local))
            part = layers[int(local)][whole_name(rest, arch, runtime)]
        yield Piece(parameter, {prefix + each: shape for each, shape in part.tensors.items()}, part.layout)


@torch.no_grad()
def load_weights(
    folder: Path, model: GPTModel, arch: Architecture, runtime: Runtime, *, leave: Collection[str] = ()
) -> None:
    """Copy a Hugging Face folder's weights into this rank's part of the model.

    Of each tensor no more is read than this rank has of it, one parameter at a time. Where the model's
    vocabulary is larger than the folder's, the rows that are new are made (`new_rows.py`).

    Args:
        leave: Hugging Face names of tensors that stay as they are.

    Raises:
        ValueError: the folder has not just the tensors of such a model, as `check_tensors` says, or one of
            them cannot be what was trained, on whichever rank.
    """
    own = replace(arch, vocab_size=read_architecture(folder).vocab_size)
    stored = check_tensors(folder, own, leave=leave)
    if runtime.rank == 0 and (unread := unread_bins(folder)):
        _logger.info("%s: the safetensors are read, and %s beside them not", folder, ", ".join(unread))
    zero: set[str] = set()

    def load() -> None:
        with ExitStack() as stack:
            files = _Files(stored, stack)
            for parameter, shapes, layout in _pieces(model, arch, runtime):
                if leave and not set(shapes).isdisjoint(leave):
                    continue
                parts: list[torch.Tensor] = []
                for name, shape in shapes.items():
                    places = layout.places(shape, runtime.tp_rank, runtime.tp_size)
                    mine, is_zero = files.read(name, shape, places)
                    parts += mine
                    if is_zero:
                        zero.add(name)
                parameter.copy_(layout.fuse(parts))

    runtime.together(load)
    everyone = runtime.everyone((runtime.pp_rank, zero))
    for name in zero.intersection(*(found for stage, found in everyone if stage == runtime.pp_rank)):
        if not _may_be_zero(name, arch):
            found = f"{stored[name].file}: {name} is all zero"
            break
    else:
        found = ""
    if problem := next(filter(None, runtime.everyone(found)), None):
        raise ValueError(f"{problem}, which no trained model's is: fetch it again")


def _may_be_zero(name: str, arch: Architecture) -> bool:
    """Whether a tensor of zeros makes sense: a bias, a head that begins there, a norm that adds one to it."""
    return name.endswith(".bias") or name == SCORE or (UNIT_NORMS in arch.features and "norm" in name)


class _Files:
    """Parts of the tensors of a folder's files, each of which is opened once."""

    def __init__(self, stored: Mapping[str, Stored], stack: ExitStack) -> None:
        self._stored, self._stack = stored, stack
        self._open: dict[Path, Any] = {}

    def read(
        self, name: str, shape: tuple[int, ...], places: Sequence[Place]
    ) -> tuple[list[torch.Tensor], bool]:
        """Parts of a tensor of this shape, and whether they have nothing but zeros.

        Raises:
            ValueError: they cannot be read, or have numbers that are none.
        """
        stored = self._stored[name]
        file = stored.file
        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(open_tensors(file))
            tensor = self._open[file].get_slice(stored.name)
            parts: list[torch.Tensor]
            if stored.shape == shape:
                parts = [tensor[place or ...] for place in places]
            else:
                parts = [read_rows(tensor, stored.shape[0], place) for place in places]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}): fetch it again") from None
        bounds = [float(bound) for part in parts for bound in torch.aminmax(part)]  # NaN where anything is
        if not all(map(math.isfinite, bounds)):
            raise ValueError(f"{file}: {name} has numbers that are not finite: fetch it again")
        return parts, not any(bounds)


@torch.no_grad()
def save_weights(
    folder: Path,
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    source: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    as_trained: bool = False,
) -> None:
    """Write the model as a Hugging Face folder: weights here, config and tokenizer copied from `source`.

    Every rank must call it. The folder appears whole, under its name, or not at all. The weights have the
    type that `source` names (`export_dtype`), whatever they were trained in, or with `as_trained` that one,
    and `config.json` says so. `changes` are keys of `config.json` to be set.

    Raises:
        OSError: a rank cannot write it; every rank raises it.
    """
    partial = folder.with_name(folder.name + ".partial")
    trained = model.config.params_dtype
    dtype = trained if as_trained else _fitting(export_dtype(source), model, runtime)

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        copy_all_but_weights(source, partial, dtype, changes)
        if torch.finfo(dtype).bits < torch.finfo(trained).bits:
            _logger.info(
                "%s is rounded to %s, the type of the model it came from; checkpoints keep %s",
                *(folder, dtype_name(dtype), dtype_name(trained)),
            )

    runtime.together(begin, first_only=True)
    file, number = WHOLE, runtime.pp_size * runtime.ep_size
    if number > 1:
        file = (
            f"model-{runtime.pp_rank * runtime.ep_size + runtime.ep_rank + 1:05d}-of-{number:05d}.safetensors"
        )
    shapes = _write_stage(partial / file, model, arch, runtime, dtype)
    _write_index(partial, file, {name: math.prod(s) * dtype.itemsize for name, s in shapes.items()}, runtime)

    def finish() -> None:
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync_folder(folder.parent)

    runtime.together(finish, first_only=True)


def _write_stage(
    file: Path, model: GPTModel, arch: Architecture, runtime: Runtime, dtype: torch.dtype
) -> dict[str, tuple[int, ...]]:
    """Write this stage's tensors, put together one parameter at a time on the rank that writes.

    Of replicas that share experts the first writes what all have, and each writes its own experts.

    Returns:
        Their shapes by name.

    Raises:
        OSError: it cannot be written; every rank raises it.
    """
    tied_again = family_of(arch).embedding if arch.tied_embeddings and not runtime.is_first_stage else None
    pieces = [
        piece
        for piece in _pieces(model, arch, runtime)
        if tied_again not in piece.shapes and (runtime.ep_rank == 0 or is_shared_out(piece.parameter))
    ]
    shapes = {name: shape for piece in pieces for name, shape in piece.shapes.items()}
    error: OSError | None = None
    if runtime.dp_rank < runtime.ep_size:
        writes = runtime.tp_rank == 0
        with TensorFile(file, shapes, dtype) if writes else nullcontext() as opened:
            for piece in pieces:  # the ranks of a stage go through them together, whatever has failed on one
                tensors = _gathered(piece, runtime, torch.nn.Parameter.detach, to_all=False)
                if opened is not None:
                    for tensor in tensors:
                        opened.write(tensor)
        error = None if opened is None else opened.failure

    def tell() -> None:
        if error is not None:
            raise error

    runtime.together(tell)
    return shapes


def _fitting(dtype: torch.dtype, model: GPTModel, runtime: Runtime) -> torch.dtype:
    """The type, or float32 where a weight on any rank is too large for it."""
    largest = max(max(map(abs, map(float, torch.aminmax(one)))) for one in model.parameters())
    largest = runtime.maximum({"largest": largest})["largest"]
    if largest > torch.finfo(dtype).max:
        _logger.warning(
            "a weight has grown to %g, too much for %s: float32 is written", largest, dtype_name(dtype)
        )
        return torch.float32
    return dtype


def gather_tensors(
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    of: Callable[[torch.nn.Parameter], torch.Tensor] = torch.nn.Parameter.detach,
) -> dict[str, torch.Tensor]:
    """This stage's tensors under their Hugging Face names, put together from its tensor-parallel ranks.

    Of experts that are shared out, those of this rank.

    Args:
        of: what to take of each parameter: the weights, or something of their shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for piece in _pieces(model, arch, runtime):
        whole = _gathered(piece, runtime, of, to_all=True)
        tensors.update(zip(piece.shapes, (tensor.clone() for tensor in whole), strict=True))
    return tensors


def _gathered(
    piece: Piece, runtime: Runtime, of: Callable[[torch.nn.Parameter], torch.Tensor], *, to_all: bool
) -> list[torch.Tensor]:
    """The whole tensors of a parameter, in the CPU's memory; every rank of its stage must call it.

    Args:
        of: what to take of the parameter.
        to_all: gives them to every tensor-parallel rank; else to the first, and to others nothing.
    """
    mine = of(piece.parameter).contiguous()
    group = parallel_state.get_tensor_model_parallel_group()
    shards: list[torch.Tensor] | None = [mine]
    if runtime.tp_size > 1:
        receives = to_all or runtime.tp_rank == 0
        shards = [torch.empty_like(mine) for _ in range(runtime.tp_size)] if receives else None
        if to_all:
            dist.all_gather(shards, mine, group=group)
        else:
            dist.gather(mine, shards, dst=dist.get_global_rank(group, 0), group=group)
    if shards is None:
        return []
    return [tensor.contiguous() for tensor in piece.layout.join([shard.cpu() for shard in shards])]


def _write_index(folder: Path, file: str, sizes: dict[str, int], runtime: Runtime) -> None:
    everyone: list[tuple[str, dict[str, int]]] = [("", {})] * runtime.world_size
    dist.all_gather_object(everyone, (file, sizes), group=runtime.objects)
    if runtime.rank == 0 and runtime.pp_size * runtime.ep_size > 1:
        weight_map = {name: shard for shard, names in everyone for name in names}
        total = sum({name: size for _, names in everyone for name, size in names.items()}.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
