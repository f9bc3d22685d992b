"""One process as a run of its own, and models in it, decoded in both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture

AnyDecoder = TorchDecoder | KernelDecoder
Load = Callable[..., AnyDecoder]


@pytest.fixture(scope="package")
def one_rank() -> Iterator[runtime.Runtime]:
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        yield rt


@pytest.fixture(scope="module", params=["kernels", "torch"])
def load(request: pytest.FixtureRequest, one_rank: runtime.Runtime) -> Load:
    """Loads a Hugging Face folder into Megatron, ready to decode on compiled kernels or on torch."""
    if request.param == "kernels":
        request.getfixturevalue("compiler")
    kind = KernelDecoder if request.param == "kernels" else TorchDecoder

    def load(folder: Path, dtype: torch.dtype = torch.float32) -> AnyDecoder:
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, one_rank, dtype=dtype), one_rank).eval()
        huggingface.load_weights(folder, model, arch, one_rank)
        decoder = new_decoder(model, arch, one_rank, GenerationConfig(engine=request.param))
        assert isinstance(decoder, kind)
        return decoder

    return load
