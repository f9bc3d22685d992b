"""Adapters in and out of the folders that `peft` reads and writes.

`adapter_config.json` says what they are, `adapter_model.safetensors` has an A and a B for each matrix, whole.
Left out on purpose: what is looked at before anything heavy is loaded (`lora_wanted.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.files import read_json_object, sync_folder, sync_tree
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.lora_spec import is_transposed, peft_names
from rs_aligner.model.lora_wanted import PREFIX, stored_adapters
from rs_aligner.model.stored import Stored
from rs_aligner.model_folder import belongs_to_a_model, is_of_weights
from rs_aligner.peft_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_identity

if TYPE_CHECKING:
    import torch

    from rs_aligner.model.lora import Adapters

_OF_THE_MODEL = ("config.json", "generation_config.json", ADAPTER_CONFIG)


def load_adapters(folder: Path, adapters: Adapters) -> None:
    """Copy a folder's adapters into those of this rank's part of a model, and a reward model's head.

    Raises:
        ValueError: the folder does not fit, or has numbers that are none; on every rank.
    """
    import torch

    arch, runtime = adapters.arch, adapters.runtime
    stored = stored_adapters(folder, arch)

    def load() -> None:
        with torch.no_grad():
            for name, part, by_rows in adapters.by_matrix():
                a, b = (_read(stored[f"{name}.lora_{x}"], f"{name}.lora_{x}") for x in "AB")
                blocks = zip(part.bs, b.split(part.blocks), strict=True)
                for parameter, whole, axis in ((part.a, a, 1), *((*block, 0) for block in blocks)):
                    is_cut = (axis == 1) == by_rows
                    parameter.copy_(whole.chunk(runtime.tp_size, axis)[runtime.tp_rank] if is_cut else whole)
            if SCORE in stored and runtime.is_last_stage:
                adapters.model.output_layer.weight.copy_(_read(stored[SCORE], SCORE))

    runtime.together(load)


def _read(stored: Stored, name: str) -> torch.Tensor:
    import torch
    from safetensors import SafetensorError

    from rs_aligner.model.opened import open_tensors

    try:
        with open_tensors(stored.file) as file:
            tensor: torch.Tensor = file.get_slice(stored.name)[...]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.file} is damaged ({error}): fetch it again") from None
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{stored.file}: {name} has numbers that are not finite: fetch it again")
    return tensor


def gather_adapters(adapters: Adapters) -> dict[str, torch.Tensor]:
    """All adapters of the model, whole, as `peft` names them; the same on every rank, which all call it."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    runtime = adapters.runtime
    group = parallel_state.get_tensor_model_parallel_group()

    def whole(parameter: torch.Tensor, axis: int, is_cut: bool) -> torch.Tensor:
        found = parameter.detach().contiguous()
        if is_cut:
            shards = [torch.empty_like(found) for _ in range(runtime.tp_size)]
            dist.all_gather(shards, found, group=group)
            found = torch.cat(shards, axis)
        return found.cpu()

    mine: dict[str, torch.Tensor] = {}
    for name, part, by_rows in adapters.by_matrix():
        blocks = [whole(b, 0, not by_rows) for b in part.bs]
        for which, found in (("A", whole(part.a, 1, by_rows)), ("B", torch.cat(blocks))):
            mine[f"{PREFIX}{name}.lora_{which}.weight"] = found.contiguous().clone()
    if adapters.arch.value_head and runtime.is_last_stage:
        mine[PREFIX + SCORE] = adapters.model.output_layer.weight.detach().cpu().clone()
    speaks = runtime.tp_rank == 0 and runtime.dp_rank == 0
    everyone = runtime.everyone(mine if speaks else {})
    return {name: tensor for rank in everyone for name, tensor in rank.items()}


def adapter_config(adapters: Adapters) -> dict[str, Any]:
    """The `adapter_config.json` of these adapters."""
    spec, arch = adapters.spec, adapters.arch
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if arch.value_head else "CAUSAL_LM",
        "base_model_name_or_path": spec.settings.base,
        "r": spec.settings.rank,
        "lora_alpha": spec.settings.alpha,
        "use_rslora": spec.settings.use_rslora,
        "target_modules": peft_names(spec.targets, arch),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": is_transposed(arch),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": [SCORE.removesuffix(".weight")] if arch.value_head else None,
    }


def write_adapter_config(folder: Path, adapters: Adapters | None) -> None:
    """Write `adapter_config.json` into a folder, where there are adapters."""
    if adapters is not None:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(adapter_config(adapters), indent=2) + "\n")


def save_adapters(folder: Path, adapters: Adapters, source: Path) -> None:
    """Write adapters as a folder that `peft` loads, with the tokenizer of `source`. Every rank must call it.

    The folder appears whole, under its name, or not at all.

    Raises:
        OSError: it cannot be written; every rank raises it.
    """
    from safetensors.torch import save_file

    tensors = gather_adapters(adapters)
    partial = folder.with_name(folder.name + ".partial")

    def write() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in source.iterdir():
            is_models = is_of_weights(path) or path.name in _OF_THE_MODEL
            if belongs_to_a_model(path) and not is_models:
                shutil.copyfile(path, partial / path.name)
        write_adapter_config(partial, adapters)
        save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync_folder(folder.parent)

    adapters.runtime.together(write, first_only=True)


def check_scheme(source: Path, adapters: Adapters | None) -> None:
    """See to it that a checkpoint is of the same adapters as those of a run, or of none where it has none.

    Args:
        source: the checkpoint's folder with config and tokenizer.
        adapters: of the run.

    Raises:
        ValueError: it is not; with the first key that differs.
    """
    config, none = source / ADAPTER_CONFIG, {"peft_scheme": "none"}
    saved = adapter_identity(read_json_object(config)) if config.is_file() else none
    wanted = none if adapters is None else adapter_identity(adapter_config(adapters))
    for key, value in wanted.items():
        if (before := saved.get(key)) != value:
            section = "model.peft" if key == "peft_scheme" else "model.peft.lora_tuning"
            raise ValueError(
                f"{source.parent} was saved with {section}.{key}={before}, and this run has {value}: set it "
                "back, or start another run from it (pretrained_checkpoint.restore_from_path)"
            )
