"""One process as a run of its own, and models in it, decoded in both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rs_aligner.generation.native_network import NativeNetwork
from rs_aligner.generation.network import Network
from rs_aligner.generation.waves import new_network
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.architecture import read_architecture
from rs_aligner.model.build import build_model, transformer_config

AnyNetwork = Network | NativeNetwork
Load = Callable[..., AnyNetwork]


@pytest.fixture(scope="package")
def one_rank() -> Iterator[runtime.Runtime]:
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        yield rt


@pytest.fixture(scope="module", params=["kernels", "torch"])
def load(request: pytest.FixtureRequest, one_rank: runtime.Runtime) -> Load:
    """Loads a Hugging Face folder into Megatron, ready to decode on compiled kernels or on torch."""
    kind = NativeNetwork if request.param == "kernels" else Network

    def load(folder: Path, dtype: torch.dtype = torch.float32) -> AnyNetwork:
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, one_rank, dtype=dtype), one_rank).eval()
        huggingface.load_weights(folder, model, arch, one_rank)
        network = new_network(model, arch, one_rank, compiled=request.param == "kernels")
        assert isinstance(network, kind)
        return network

    return load
