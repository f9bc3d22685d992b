"""The adapters that a config asks for: drawn anew, or those of a folder, as the header of its file has them.

All of it without torch, so that what does not fit the model is told before anything heavy is loaded. Left out
on purpose: what `peft_folder.py` refuses by a folder's config, and adapters of some layers only.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rs_aligner.config.peft import EVERYWHERE, RANK, AdapterConfig, LoraTuningConfig, PeftConfig
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.lora_spec import TARGETS, LoraSpec, projections, resolve
from rs_aligner.model.stored import DTYPES, Stored
from rs_aligner.model.tensors import read_header
from rs_aligner.peft_folder import AdapterSettings, adapter_weights, read_adapter_settings

PREFIX = "base_model.model."
"""What the names of tensors begin with in an adapter folder."""

_KEY = re.compile(r"(?P<matrix>.+)\.lora_(?P<which>[AB])\.weight")


def check_adapters(config: AdapterConfig, arch: Architecture, *, scores: bool = False) -> None:
    """See to it that the adapters that a config asks for fit a model, before it is loaded.

    Args:
        config: the `model.peft` section.
        arch: the model's.
        scores: whether it is going to be a reward model.

    Raises:
        ValueError: they do not; with the key or the tensor.
    """
    arch = replace(arch, value_head=scores or arch.value_head)
    if isinstance(config, PeftConfig):
        spec_of(config, arch)
    elif config.restore_from_path is not None:
        targets_of(Path(config.restore_from_path), arch)


def spec_of(config: PeftConfig, arch: Architecture) -> LoraSpec | None:
    """The adapters that `model.peft` asks for; None where all weights are trained.

    Raises:
        ValueError: names of `target_modules` stand for nothing, or an adapter folder does not fit.
    """
    if not config.is_lora:
        return None
    tuning = config.lora_tuning
    if config.restore_from_path is None:
        rank = tuning.adapter_dim or RANK
        settings = AdapterSettings(rank, tuning.alpha or float(rank), bool(tuning.use_rslora))
        return _spec(settings, resolve(tuning.target_modules or EVERYWHERE, arch), tuning)
    folder = Path(config.restore_from_path)
    targets = targets_of(folder, arch)
    if tuning.target_modules is not None and (asked := resolve(tuning.target_modules, arch)) != targets:
        raise ValueError(
            f"{TARGETS} stands for {', '.join(asked)}, and the adapter in {folder} has "
            f"{', '.join(targets)}: set it to null"
        )
    return _spec(read_adapter_settings(folder), targets, tuning)


def _spec(settings: AdapterSettings, targets: tuple[str, ...], tuning: LoraTuningConfig) -> LoraSpec:
    return LoraSpec(settings, targets, tuning.column_init_method, tuning.row_init_method)


def targets_of(folder: Path, arch: Architecture) -> tuple[str, ...]:
    """The matrices of a layer that have adapters in a folder, in the model's order.

    Raises:
        ValueError: the folder cannot be read, or does not fit the model; with the tensor.
    """
    found, layers = stored_adapters(folder, arch), family_of(arch).layers
    matrices = [name for group in projections(arch).values() for name in group]
    first = layers.format(0)
    return tuple(name for name in matrices if f"{first}{name}.lora_A" in found)


def stored_adapters(folder: Path, arch: Architecture) -> dict[str, Stored]:
    """The tensors of a folder by matrix and `lora_A` or `lora_B`, a reward model's head by its name."""
    settings = read_adapter_settings(folder)
    shapes = {name: shape for group in projections(arch).values() for name, shape in group.items()}
    file, layers = adapter_weights(folder), family_of(arch).layers
    expected = {
        f"{layers.format(number)}{name}.lora_{which}": shape
        for number in range(arch.num_layers)
        for name, (outputs, inputs) in shapes.items()
        for which, shape in (("A", (settings.rank, inputs)), ("B", (outputs, settings.rank)))
    }
    if arch.value_head:
        expected[SCORE] = (1, arch.hidden_size)
    found: dict[str, Stored] = {}
    for key, stored in read_header(file).items():
        name = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(name)
        name = f"{match['matrix']}.lora_{match['which']}" if match else name
        if name not in expected:
            raise ValueError(
                f"{file}: {key} belongs to no matrix of this {arch.family} model that can be adapted; those "
                f"of its {arch.num_layers} layers can: {', '.join(shapes)}"
            )
        if stored.shape != expected[name] or stored.dtype not in DTYPES:
            raise ValueError(
                f"{file}: {key} is {stored.dtype} {list(stored.shape)}, and this {arch.family} model with "
                f"r={settings.rank} has {list(expected[name])}: it is an adapter of another model"
            )
        found[name] = stored
    _check_complete(file, found, arch)
    return found


def _check_complete(file: Path, found: dict[str, Stored], arch: Architecture) -> None:
    """Every layer has the same adapters, each with A and B."""
    layers = family_of(arch).layers
    kinds = {
        match[1]
        for name in found
        if (match := re.fullmatch(re.escape(layers).replace(r"\{\}", r"\d+") + "(.+)", name))
    }
    if not kinds:
        raise ValueError(f"{file} has no adapters")
    wanted = {kind[:-1] + which for kind in kinds for which in "AB"}
    for number in range(arch.num_layers):
        for kind in sorted(wanted):
            if (name := layers.format(number) + kind) not in found:
                raise ValueError(
                    f"{file} lacks {PREFIX}{name}.weight: adapters of some layers only are not supported"
                )
