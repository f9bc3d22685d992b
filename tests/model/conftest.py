"""The Megatron model and the Hugging Face model of a test's `folder`, which each module has of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel

from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime


@pytest.fixture(scope="module")
def model(folder: Path, rt: Runtime) -> GPTModel:
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    return model


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    """What transformers computes, by the attention that caps scores in each of its versions (Gemma 2)."""
    found: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return found
