"""The adapters that a training's config asks for, on a model that is loaded.

Left out on purpose: what adapters are (`model/lora.py`), and when they are merged (`trainable.py`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from megatron.core.models.gpt import GPTModel

from rs_aligner.config import ModelBase
from rs_aligner.model.adapter_folder import load_adapters
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.lora import Adapters, attach
from rs_aligner.model.lora_spec import num_trainable_parameters, peft_names
from rs_aligner.model.lora_wanted import spec_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import num_parameters

_logger = logging.getLogger("rs_aligner")


def adapters_for(
    model: GPTModel, arch: Architecture, runtime: Runtime, config: ModelBase, folder: Path
) -> Adapters | None:
    """Give a model its adapters, drawn anew or from a folder; None where all weights are trained.

    Args:
        model: this rank's part, with its weights.
        arch: its architecture.
        runtime: of this rank.
        config: the `model` section.
        folder: what the model was loaded from, which a checkpoint of the adapters names.

    Raises:
        ValueError: the adapters do not fit the model.
    """
    spec = spec_of(config.peft, arch)
    if spec is None:
        return None
    spec = replace(spec, settings=replace(spec.settings, base=str(folder.resolve())))
    adapters = attach(model, arch, runtime, spec, config.seed)
    adapters.is_exported_alone = config.peft.export == "adapter"
    if config.peft.restore_from_path is not None:
        load_adapters(Path(config.peft.restore_from_path), adapters)
    if runtime.rank == 0:
        trained, of = num_trainable_parameters(arch, spec), num_parameters(arch)
        _logger.info(
            "LoRA: r %d, scale %g, on %s; %s of %s parameters are trained (%.2g %%)",
            *(spec.settings.rank, spec.settings.scale),
            ", ".join(peft_names(spec.targets, arch)),
            *(f"{trained:,}", f"{of:,}", 100 * trained / of),
        )
    return adapters
