"""One process as a run of its own, and models in it, decoded in all ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.decoder import Decoder
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.generation.vllm.decoder import VllmDecoder
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from tests.vllm_server import STORIES

AnyDecoder = TorchDecoder | KernelDecoder
Load = Callable[..., AnyDecoder]


@pytest.fixture(scope="package")
def one_rank() -> Iterator[runtime.Runtime]:
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        yield rt


@pytest.fixture(scope="package")
def rt(one_rank: runtime.Runtime) -> runtime.Runtime:
    """The same run: a process joins its groups once."""
    return one_rank


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


@pytest.fixture(scope="module", params=["kernels", "torch", pytest.param("vllm", marks=pytest.mark.slow)])
def decoder_of(
    request: pytest.FixtureRequest, one_rank: runtime.Runtime, test_data: Path
) -> Iterator[Callable[..., Decoder]]:
    """Makes each engine's decoder of `STORIES`; `allowed` masks its ids."""
    if request.param == "kernels":
        request.getfixturevalue("compiler")
    settings: dict[str, Any] = {"engine": request.param}
    if request.param == "vllm":
        settings["endpoints"] = request.getfixturevalue("stories_server").url
        settings["servers"] = {"startup_timeout": 120}  # machines are shared
    folder = test_data / STORIES
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, one_rank, dtype=torch.float32), one_rank).eval()
    huggingface.load_weights(folder, model, arch, one_rank)
    made = []

    def decoder_of(allowed: torch.Tensor | None = None) -> Decoder:
        config = GenerationConfig.model_validate(settings)
        made.append(new_decoder(model, arch, one_rank, config, allowed=allowed))
        return made[-1]

    yield decoder_of
    for decoder in made:
        if isinstance(decoder, VllmDecoder):
            decoder.close(is_over=True)
