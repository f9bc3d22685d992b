"""Where the tests of this folder run: on a GPU, and many of them on a CPU as well, which holds their bodies.

On a CPU a test shows only that it is written rightly; `pytest -m gpu` leaves those copies out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rs_aligner.model import runtime
from rs_aligner.model.runtime import Runtime
from tests.tiny import save_tiny

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ON_TWO_GPUS = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]
TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
BOUND = {"fp32": 1e-4, "bf16": 0.1}
"""Of a log-probability; in bf16 it has 8 bits."""
COPY = pytest.mark.slow
"""Of what is run on a CPU to see that it is right."""


@pytest.fixture(scope="module", params=[pytest.param("cpu", marks=COPY), pytest.param("gpu", marks=ON_GPU)])
def accelerator(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def rt(accelerator: str) -> Iterator[Runtime]:
    """This process as a run of one rank there."""
    with runtime.start(accelerator=accelerator, timeout_minutes=1) as rt:
        yield rt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")
