"""The families that there are, and the one of a model folder."""

from __future__ import annotations

from pathlib import Path

from rs_aligner.files import read_json_object
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Family
from rs_aligner.model.families.gpt2 import GPT2
from rs_aligner.model.families.llama import LLAMA
from rs_aligner.model.families.mistral import MISTRAL
from rs_aligner.model.families.mixtral import MIXTRAL
from rs_aligner.model.families.qwen2 import QWEN2
from rs_aligner.model.families.qwen3 import QWEN3
from rs_aligner.model.families.qwen3_moe import QWEN3_MOE

FAMILIES: list[Family] = [
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
]


def read_architecture(folder: Path) -> Architecture:
    """Read `folder/config.json`.

    Raises:
        ValueError: no such file, another family, or a feature that is not supported; named with
            what would work.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    config = read_json_object(path)
    named = config.get("model_type")
    for family in FAMILIES:
        if family.name == named:
            return family.read(path, config)
    names = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"{path}: model_type {named!r} is not supported; one of {names} is")


def family_of(arch: Architecture) -> Family:
    """The family of an architecture."""
    return next(family for family in FAMILIES if family.name == arch.family)
