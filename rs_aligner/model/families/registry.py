"""The families that there are, and the one of a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rs_aligner.files import read_json_object
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Family
from rs_aligner.model.families.gemma2 import GEMMA2
from rs_aligner.model.families.gemma3 import GEMMA3
from rs_aligner.model.families.gpt2 import GPT2
from rs_aligner.model.families.granite import GRANITE
from rs_aligner.model.families.llama import LLAMA
from rs_aligner.model.families.mistral import MISTRAL
from rs_aligner.model.families.mixtral import MIXTRAL
from rs_aligner.model.families.olmo2 import OLMO2
from rs_aligner.model.families.olmo3 import OLMO3
from rs_aligner.model.families.phi3 import PHI3
from rs_aligner.model.families.qwen2 import QWEN2
from rs_aligner.model.families.qwen3 import QWEN3
from rs_aligner.model.families.qwen3_moe import QWEN3_MOE
from rs_aligner.model.families.refused import REFUSED
from rs_aligner.model.families.smollm3 import SMOLLM3

FAMILIES: list[Family] = [
    GEMMA2,
    GEMMA3,
    GPT2,
    GRANITE,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
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
    why = f": it has {REFUSED[named]}" if named in REFUSED else ""
    raise ValueError(f"{path}: model_type {named!r} is not supported{why}; one of {names} is")


def as_reward_model(arch: Architecture) -> Architecture:
    """That of the reward model that is made of a model.

    Raises:
        ValueError: `transformers` has none in this family.
    """
    family = family_of(arch)
    if not family.has_classifier:
        raise ValueError(
            f"a {family.name} model cannot become a reward model: transformers has no "
            f"{family.classes}ForSequenceClassification that could load it; one of another family can"
        )
    return replace(arch, value_head=True, tied_embeddings=False)


def family_of(arch: Architecture) -> Family:
    """The family of an architecture."""
    return next(family for family in FAMILIES if family.name == arch.family)
