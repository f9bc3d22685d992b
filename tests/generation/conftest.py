"""One process as a run of its own, and models in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rs_aligner.generation.network import Network
from rs_aligner.policy import huggingface, runtime
from rs_aligner.policy.architecture import read_architecture
from rs_aligner.policy.model import build_model, transformer_config

Load = Callable[..., Network]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Loads a Hugging Face folder into Megatron, ready to decode."""
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:

        def load(folder: Path, dtype: torch.dtype = torch.float32) -> Network:
            arch = read_architecture(folder)
            model = build_model(arch, transformer_config(arch, rt, dtype=dtype), rt).eval()
            huggingface.load_weights(folder, model, arch, rt)
            return Network(model, arch, rt)

        yield load
