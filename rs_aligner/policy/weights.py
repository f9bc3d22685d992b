"""A model's weights from wherever they are: a Hugging Face folder, or a checkpoint of a run, of either kind.

A checkpoint of a run with adapters has these alone; the model below them lies where the run had it. An
adapter folder of `peft` is put onto a model by a key of its own (`model.peft`). Left out on purpose: training
them (`adapting.py`).
"""

from __future__ import annotations

from pathlib import Path

from megatron.core.models.gpt import GPTModel

from rs_aligner.files import hugging_face_part, read_json_object
from rs_aligner.model import huggingface
from rs_aligner.model.adapter_folder import load_adapters
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.lora import attach
from rs_aligner.model.lora_spec import LoraSpec, resolve
from rs_aligner.model.lora_wanted import targets_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.peft_folder import ADAPTER_CONFIG, adapter_settings, read_adapter_settings
from rs_aligner.policy import checkpoint


def load_into(model: GPTModel, folder: Path, arch: Architecture, runtime: Runtime) -> None:
    """Load a model's weights; every rank calls this.

    Adapters of a checkpoint are in the weights then. A reward model's head stays as it is where the folder
    has none.

    Args:
        model: this rank's part.
        folder: a Hugging Face folder, or a checkpoint of a run.
        arch: of the model; that of the folder, or the reward model that is made of it.
        runtime: of this rank.

    Raises:
        ValueError: the folder cannot be read, or is of another model.
    """
    source = hugging_face_part(folder)
    with_head = not arch.value_head or read_architecture(source).value_head
    if source == folder:
        leave = () if with_head else (SCORE,)
        huggingface.load_weights(folder, model, arch, runtime, leave=leave)
    elif (config := source / ADAPTER_CONFIG).is_file():
        made = read_json_object(config)
        settings = adapter_settings(made)
        load_into(model, Path(settings.base), arch, runtime)
        targets = resolve(made["target_modules"], arch)
        adapters = attach(model, arch, runtime, LoraSpec(settings, targets), seed=0)
        checkpoint.load_weights(folder, adapters, runtime, with_head=with_head)
        adapters.merge_for_good()
    else:
        checkpoint.load_weights(folder, model, runtime, with_head=with_head)


def merge_folder(model: GPTModel, arch: Architecture, runtime: Runtime, folder: Path) -> None:
    """Put an adapter folder of `peft` into a model's weights, for good; every rank calls this.

    Raises:
        ValueError: the folder cannot be read, or is of another model.
    """
    spec = LoraSpec(read_adapter_settings(folder), targets_of(folder, arch))
    adapters = attach(model, arch, runtime, spec, seed=0)
    load_adapters(folder, adapters)
    adapters.merge_for_good()
