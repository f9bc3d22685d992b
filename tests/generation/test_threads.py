"""The kernels' threads: which regions are run by several, and that no bit of a row depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.generation.native import Kernels, load_kernels, tile_shape
from rs_aligner.generation.native_network import NativeNetwork
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.compiled import address
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt, Rollout
from rs_aligner.threads import Threads
from tests.drawing import request_of
from tests.tiny import save_tiny


class NoText:
    eos_ids: tuple[int, ...] = (3,)

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        return ""


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Any:
    """Kernels for which any work at all is worth a thread."""
    folder = tmp_path_factory.mktemp("eager")
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\nexec {compiler} "$@" -DWORTH=1.0\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(script))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return load_kernels.__wrapped__(8, 2)


def decode(rt: Runtime, folder: Path, kernels: Kernels, threads: int) -> list[Rollout]:
    runtime = replace(rt, threads=Threads(threads, chosen=False))
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, runtime, dtype=torch.float32), runtime).eval()
    huggingface.load_weights(folder, model, arch, runtime)
    decoder = KernelDecoder(NativeNetwork(model, arch, runtime, kernels))
    prompts = [Prompt(str(i), "", (5,) * (1 + 19 * i), position=i) for i in range(4)]
    rollouts = generate(decoder, NoText(), request_of(prompts, 10, Controls(max_length=24)), seed=1)
    return sorted(rollouts, key=lambda rollout: (rollout.group, rollout.index))


def linear(kernels: Kernels, rows: int, n_out: int, n_in: int, threads: int) -> torch.Tensor:
    torch.manual_seed(2)
    weight, x = torch.randn(n_out, n_in), torch.randn(tile_shape(n_in, rows))
    out = torch.zeros(tile_shape(n_out, rows))
    kernels.linear(address(weight), 0, None, n_out, n_in, address(x), address(out), rows, 0, threads)
    return out


def test_a_small_models_regions_stay_on_one_thread(one_rank: Runtime, tmp_path: Path) -> None:
    kernels = load_kernels(8, 2)
    folder = save_tiny("llama", tmp_path)
    before = kernels.regions(0), kernels.regions(1)
    decode(one_rank, folder, kernels, threads=2)
    assert kernels.regions(1) == before[1]
    assert kernels.regions(0) > before[0] + 300


@pytest.mark.parametrize(
    ("rows", "n_out", "n_in", "parts"),
    [
        (160, 128, 64, 1),  # stories260k, its widest wave: queries, keys and values
        (160, 512, 64, 1),  # logits
        (160, 64, 172, 1),
        (128, 1536, 512, 2),  # the 27 M shape
        (128, 512, 512, 2),
        (4, 1536, 512, 1),  # few rows are left at the end of a wave
        (4, 4096, 4096, 2),  # of a large model
    ],
)
def test_a_product_is_split_where_each_part_is_worth_a_thread(
    rows: int, n_out: int, n_in: int, parts: int
) -> None:
    kernels = load_kernels(8, 2)
    before = kernels.regions(1)
    several = linear(kernels, rows, n_out, n_in, threads=2)
    assert kernels.regions(1) - before == (parts > 1)
    before = kernels.regions(1)
    assert torch.equal(linear(kernels, rows, n_out, n_in, threads=1), several)
    assert kernels.regions(1) == before


@pytest.mark.slow
def test_no_bit_of_a_rollout_depends_on_the_number_of_threads(
    one_rank: Runtime, tmp_path: Path, eager: Kernels
) -> None:
    """Every region is split here: products, attention, what is put into pages, and the MLP's middle."""
    folder = save_tiny("llama", tmp_path)
    one = decode(one_rank, folder, load_kernels(8, 2), threads=1)
    before = eager.regions(1)
    for threads in (2, 3, 7):
        assert decode(one_rank, folder, eager, threads) == one
    assert eager.regions(1) - before > 3 * 300
    assert eager.regions(0) == 0
