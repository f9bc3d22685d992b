"""A plan says which engine rollouts will come from and what it holds; and that is what is there then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.commands.decoding import Decoding
from rs_aligner.config import GenerationConfig
from rs_aligner.generation import cohorts, engines, paged
from rs_aligner.generation.decoder import Ahead, Wave
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.wave import Wave as PlannedWave
from rs_aligner.model.wave import wave_of
from rs_aligner.rollout import Prompt
from tests.commands.test_fitting import EIGHT, GIB, LENGTHS, ON_EIGHT, fit_of
from tests.policy.objective_cases import NoText
from tests.tiny import FAMILIES, save_tiny

pytestmark = pytest.mark.timeout(120)
SERVED = {
    "model.rs.generation.engine": "vllm",
    "model.rs.generation.endpoints": ["node3:8000", "node4:8000"],
}


def told(name: str, **keys: Any) -> str:
    """A line of the plan of the 8B model on GPUs."""
    [text] = [text for one, text in fit_of(80 * GIB, **ON_EIGHT, **keys).lines() if one == name]
    return text


def test_a_plan_names_the_engine_and_why_no_other() -> None:
    assert told("engine") == "torch (not kernels: they are for CPUs)"
    chosen = {"model.rs.generation.engine": "torch"}
    assert told("engine", **chosen) == "torch, as model.rs.generation.engine says"
    with pytest.raises(
        ValueError, match=r"generation\.engine=kernels cannot decode this llama model here: kernels: they are"
    ):
        fit_of(80 * GIB, **ON_EIGHT, **{"model.rs.generation.engine": "kernels"})


def test_with_servers_they_hold_keys_and_values_and_no_rank_does() -> None:
    fit = fit_of(80 * GIB, **ON_EIGHT, **SERVED)
    lines = dict(fit.lines())
    assert lines["engine"] == "vllm, of servers at node3:8000, node4:8000"
    assert "  sampling" not in lines
    assert (fit.memory.cache, fit.memory.decoding, fit.cache_bytes) == (0, 0, None)
    assert fit.memory.held == fit_of(80 * GIB, **ON_EIGHT).memory.held
    # 8.03 billion parameters, 2 bytes each; 2 x 32 layers x 8 heads x 128 numbers of 2 bytes a token; and of
    # 72 GiB what is left for rollouts of 1,024 tokens behind prompts of 1,024.
    rollouts = int((72 - 14.958) * 2**30) // (128 * 1024 * 2048)
    assert lines["  each holds"] == (
        "weights 14.96 GiB, if in bf16; keys and values 128.0 KiB a token, 0.25 GiB a rollout with its "
        f"prompt: {rollouts} of them beside the weights on a GPU like this one"
    )
    assert lines["  new weights"] == "up to 3 versions in the run's folder, 14.96 GiB each"


def test_of_servers_whose_memory_is_not_known_a_plan_tells_what_a_gibibyte_holds() -> None:
    ahead = Ahead(EIGHT, on_gpu=False, bf16=True)
    config = GenerationConfig(engine="vllm", endpoints=("node3:8000",))
    lines = dict(
        Decoding.of(config, "key", ahead).server_lines(PlannedWave(8, 4, 24, 1000), None, trains=False)
    )
    assert lines["  each holds"].endswith(
        "0.12 GiB a rollout with its prompt: 8 of them in each GiB of its cache"
    )
    assert "  new weights" not in lines


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_plan_foretells_decodes_then(family: str, rt: Runtime, tmp_path: Path) -> None:
    arch = read_architecture(save_tiny(family, tmp_path))
    foretold = engines.choose(Ahead(arch, on_gpu=False, bf16=False), GenerationConfig())
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    assert engines.new_decoder(model, arch, rt).description.startswith(foretold.engine.name)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("engine", "dtype", "page"),
    [("kernels", torch.float32, 16), ("torch", torch.float32, 0), ("torch", torch.bfloat16, 0)],
)
def test_the_cache_is_as_large_as_planned(
    engine: Any,
    dtype: torch.dtype,
    page: int,
    rt: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to a page a prompt and a rollout, of the kernels."""
    arch = read_architecture(save_tiny("llama", tmp_path, layers=2))
    model = build_model(arch, transformer_config(arch, rt, dtype=dtype), rt)
    config = GenerationConfig(engine=engine)
    held: list[int] = []
    if engine == "kernels":
        pool = paged.Session.__init__

        def watch(session: Any, *args: Any) -> None:
            pool(session, *args)
            held.append(session.pool.size * session.network.bytes_per_page)

        monkeypatch.setattr(paged.Session, "__init__", watch)
    else:
        advance = cohorts.CohortCache.advance

        def look(cache: cohorts.CohortCache) -> None:
            advance(cache)
            held.append(cache.nbytes)

        monkeypatch.setattr(cohorts.CohortCache, "advance", look)
    wave = PlannedWave(prompts=2, each=3, longest_prompt=20, max_length=24)
    decode(engines.new_decoder(model, arch, rt, config), wave)
    cached = Decoding.of(config, "", Ahead(arch, False, dtype == torch.bfloat16)).cached
    rounding = arch.cache_bytes_per_token(cached) * page * (wave.prompts + 2 * wave.prompts * wave.each)
    planned = wave.cache_bytes(arch, cached)
    assert planned <= max(held) <= planned + rounding


def decode(decoder: Any, wave: PlannedWave) -> None:
    """As many tokens as the wave says."""
    prompts = [Prompt(str(p), "", tuple(range(3, 3 + wave.longest_prompt))) for p in range(wave.prompts)]
    rows = [
        RolloutRow(group, index, index, prompt, wave.max_length)
        for group, prompt in enumerate(prompts)
        for index in range(wave.each)
    ]
    with torch.no_grad():
        found = list(
            decoder.decode(Wave(rows, Controls(max_length=wave.max_length), EndStrings(NoText(), ())))
        )
    assert [len(tokens) for _, tokens, _, _ in found] == [wave.max_length] * len(rows)


def test_a_wave_is_a_replicas_share_in_pieces() -> None:
    config = fit_of(80 * GIB, **ON_EIGHT).config
    assert wave_of(config, LENGTHS.prompts, 7) == PlannedWave(64, 4, 7, 1024)  # type: ignore[arg-type]  # of one command
    pieces = fit_of(80 * GIB, **ON_EIGHT, **{"model.rs.rollout_micro_batch_size": 5}).config
    assert wave_of(pieces, LENGTHS.prompts, 7).prompts == 5  # type: ignore[arg-type]  # of one command
