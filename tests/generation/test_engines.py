"""Which engine decodes, and what a further one takes: a decoder, a way to make it, its line in the list."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rs_aligner.config import GenerationConfig, LengthParams, PolicyModelBase, SamplingParams
from rs_aligner.generation import engines, on_kernels
from rs_aligner.generation.decoder import Ahead, CannotDecode, Decoder, Engine, Offer, Wave
from rs_aligner.generation.native import NoKernels
from rs_aligner.generation.on_torch import TORCH
from rs_aligner.generation.rows import Ended
from rs_aligner.model.architecture import EXPERTS, Architecture, Rope
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.sampler import Decoding, load_sampler
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt, Rollout
from rs_aligner.sample_request import SampleRequest
from tests.ports import free_port
from tests.tiny import save_tiny, save_tiny_with_tokenizer

# An engine's file.


class Counting:
    """Decodes nothing: each token is the one before it and one."""

    description = "counting up"
    is_served = False
    rows_stand_alone = True
    behind = 0

    def __init__(self, offer: Offer) -> None:
        self.vocab_size, self.exports = offer.arch.vocab_size, offer.exports

    def prepare(self, version: int, *, now: bool = False) -> int:
        return version if now else version - self.behind

    def close(self, *, is_over: bool) -> None:
        self.is_over = is_over

    def decode(self, wave: Wave) -> Iterator[Ended]:
        for row in reversed(wave.rows):  # rollouts end in any order
            last = row.prompt.token_ids[-1]
            tokens = [(last + 1 + place) % self.vocab_size for place in range(row.limit)]
            yield row, tokens, [0.0] * row.limit, "length"


COUNTING = Engine("counting", Counting)

# Its line.


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ENGINES", [COUNTING, *engines.ENGINES])


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="rs_aligner")
    return caplog


def sampled(policy: Any, *, step: int = 1, first_index: int = 0) -> list[Rollout]:
    prompts = [Prompt("a", "", (5, 9), position=3), Prompt("b", "", (70,), position=4)]
    lengths = LengthParams(max_length=4)
    asked = SampleRequest(prompts, 2, SamplingParams(), lengths, step, wave_size=1, first_index=first_index)
    return sorted(policy.generate(asked), key=lambda rollout: (rollout.group, rollout.index))


@pytest.mark.usefixtures("registered")
def test_a_further_engine_decodes_for_the_policy_and_for_who_only_samples(
    one_rank: Runtime, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_with_tokenizer(tmp_path)
    tokenizer = Tokenizer(folder)
    config = PolicyModelBase.model_validate({"data": {"data_prefix": {"train": []}}})
    policy = MegatronPolicy(folder, config, one_rank, tokenizer, optimization=Optimization(lambda step: 0.0))
    sampler = load_sampler(folder, one_rank, tokenizer, seed=config.seed)
    said = [record.getMessage() for record in log.records if record.name == "rs_aligner"]
    assert said == ["decoder: counting up"] * 2
    policy.version = 7
    found = sampled(policy, first_index=2)
    assert [(r.group, r.index) for r in found] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert [r.token_ids for r in found] == [(10, 11, 12, 13)] * 2 + [(71, 72, 73, 74)] * 2
    assert [r.text for r in found] == [tokenizer.decode(r.token_ids) for r in found]
    assert {(r.finish_reason, r.policy_version) for r in found} == {("length", 7)}
    assert len({r.seed for r in found}) == 4
    assert [r.token_ids for r in sampled(sampler)] == [r.token_ids for r in found]
    assert [r.seed for r in sampled(sampler, first_index=2)] == [r.seed for r in found]


@pytest.mark.usefixtures("registered")
def test_an_engine_with_weights_of_its_own_gets_the_policys_and_says_which_version_samples(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "behind", 2)
    folder, root = save_tiny_with_tokenizer(tmp_path), tmp_path / "weights"
    tokenizer = Tokenizer(folder)
    config = PolicyModelBase.model_validate({"data": {"data_prefix": {"train": []}}})
    plain, to = Optimization(lambda step: 0.0), Decoding(weights_at=root)
    policy = MegatronPolicy(folder, config, one_rank, tokenizer, optimization=plain, generation=to)
    policy.version = 7
    assert {r.policy_version for r in sampled(policy)} == {5}
    assert policy.weights_seconds == 0.0
    clock = itertools.count(1000.0, 3.0)  # three seconds from each look at it to the next
    monkeypatch.setattr("rs_aligner.policy.sampler.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Counting, "is_served", True)
    sampled(policy)
    assert policy.weights_seconds == 3.0
    sampler = load_sampler(folder, one_rank, tokenizer, seed=config.seed, generation=to)
    expected = load_file(folder / "model.safetensors")
    for one in (policy.sampler, sampler):
        decoder: Any = one.decoder
        exports = decoder.exports
        exports.whole(root / "step_000005")
        found = load_file(root / "step_000005" / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert exports.adapters is None


def decoder_of(runtime: Runtime, folder: Path, **config: Any) -> Decoder:
    arch = read_architecture(save_tiny("llama", folder))
    model = build_model(arch, transformer_config(arch, runtime, dtype=torch.float32), runtime)
    return engines.new_decoder(model, arch, runtime, GenerationConfig(**config))


def test_an_engine_that_cannot_run_the_model_says_why_and_the_next_one_decodes(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def decline(offer: Offer) -> Decoder:
        raise CannotDecode(f"nobody counts to {offer.arch.vocab_size}")

    declining = Engine("counting", decline)
    monkeypatch.setattr(engines, "ENGINES", [declining, TORCH])
    decoder_of(one_rank, tmp_path / "one")
    assert log.messages == ["decoder: torch, which is slower, since nobody counts to 96"]
    monkeypatch.setattr(engines, "ENGINES", [declining])
    with pytest.raises(ValueError, match="no engine can decode this llama model here: counting: nobody"):
        decoder_of(one_rank, tmp_path / "none")


def test_ranks_agree_on_one_engine(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    class OfTwo(Runtime):
        """A rank beside one that cannot count."""

        def maximum(self, values: dict[str, float]) -> dict[str, float]:
            said.append(values)
            return {"missing": 1.0} if len(said) == 1 else values

    said: list[dict[str, float]] = []
    monkeypatch.setattr(engines, "ENGINES", [COUNTING, TORCH])
    decoder = decoder_of(OfTwo(**vars(one_rank)), tmp_path)
    assert decoder.description == "torch"
    assert said == [{"missing": 0.0}] * 2
    assert log.messages == ["decoder: torch, which is slower, since another rank has no counting"]


@pytest.mark.parametrize("engine", ["kernels", "torch"])
def test_the_engine_keeps_to_the_budget_of_the_config(one_rank: Runtime, tmp_path: Path, engine: str) -> None:
    decoder: Any = decoder_of(one_rank, tmp_path, engine=engine, kv_cache_bytes=12345)
    assert decoder.kv_cache_bytes == 12345


def test_the_engine_that_the_config_names_decodes_or_nobody_does(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoder_of(one_rank, tmp_path / "torch", engine="torch").description == "torch"

    def none(*_: int) -> Any:
        raise NoKernels("there is no C compiler")

    monkeypatch.setattr(on_kernels, "load_kernels", none)
    expected = (
        "generation.engine=kernels cannot decode this llama model here: kernels: there is no C compiler"
    )
    with pytest.raises(ValueError, match=expected):
        decoder_of(one_rank, tmp_path / "kernels", engine="kernels")
    served = {"endpoints": [f"127.0.0.1:{free_port()}"], "servers": {"startup_timeout": 0.1}}
    with pytest.raises(ValueError, match=r"^generation\.engine=vllm: no vLLM server is ready after 0\.1 s"):
        decoder_of(one_rank, tmp_path / "vllm", engine="vllm", **served)


def ahead_of(width: int = 64, *, on_gpu: bool = False, bf16: bool = False, **shape: Any) -> Ahead:
    arch = Architecture(
        **{
            "family": "llama",
            "vocab_size": 96,
            "hidden_size": width,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "intermediate_size": 80,
            "max_positions": 128,
            "norm_eps": 1e-5,
            "rope": Rope(),
            "tied_embeddings": True,
            **shape,
        }
    )
    return Ahead(arch, on_gpu, bf16)


@pytest.mark.parametrize(
    ("width", "on_gpu", "bf16", "flags", "chosen", "why"),
    [
        (1024, False, False, "fpu amx_bf16", "kernels", ""),
        # Faster on torch, where it was measured.
        (768, False, True, "fpu amx_bf16 sse", "torch", "torch is faster in bf16 from a width of 768 on"),
        (768, False, True, "fpu avx512_bf16", "torch", "torch is faster in bf16 from a width of 768 on"),
        (512, False, True, "fpu avx512_bf16 amx_bf16", "kernels", ""),
        (1024, False, False, "fpu avx512_bf16 amx_bf16", "kernels", ""),
        (1024, False, True, "fpu avx512f avx512_vnni", "kernels", ""),
        (1024, True, True, "fpu", "torch", "they are for CPUs"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_which_of_our_engines_is_chosen_follows_from_processor_and_shapes(
    width: int, on_gpu: bool, bf16: bool, flags: str, chosen: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_kernels, "processor", lambda: f"model name : some\nflags : {flags}")
    found = engines.choose(ahead_of(width, on_gpu=on_gpu, bf16=bf16), GenerationConfig())
    assert found.engine.name == chosen
    assert found.others.get("kernels", "").startswith(why)
    assert bool(found.others.get("kernels")) is bool(why)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"features": frozenset({EXPERTS})}, "it does not know experts of llama"),
        ({"num_heads": 64}, "there are no kernels for 32 query heads of 16 numbers to a key's"),
        ({"head_dim": 15}, "there are no kernels for 2 query heads of 15 numbers to a key's"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_what_the_kernels_cannot_decode_shows_before_there_is_a_model(
    shape: dict[str, Any], why: str
) -> None:
    found = engines.choose(ahead_of(**shape), GenerationConfig())
    assert (found.engine.name, found.others) == ("torch", {"kernels": why})
    with pytest.raises(ValueError, match=f"generation.engine=kernels cannot decode this llama .*: {why}"):
        engines.choose(ahead_of(**shape), GenerationConfig(engine="kernels"))


def test_without_a_compiler_torch_is_foretold_and_decodes(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = engines.choose(ahead_of(), GenerationConfig())
    why = "there is no C compiler (cc or gcc, or what CC names)"
    assert (found.engine.name, found.others) == ("torch", {"kernels": why})
    assert decoder_of(one_rank, tmp_path / "model").description == "torch"
    assert log.messages == [f"decoder: torch, which is slower, since {why}"]


def test_what_is_foretold_of_an_offer_is_what_was_known_before(one_rank: Runtime, tmp_path: Path) -> None:
    arch = read_architecture(save_tiny("qwen3", tmp_path))
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model(arch, transformer_config(arch, one_rank, dtype=dtype), one_rank)
        offer = Offer(model, arch, one_rank, GenerationConfig(), None)
        assert offer.ahead == Ahead(arch, on_gpu=False, bf16=dtype == torch.bfloat16)


def test_a_plan_knows_the_engines_without_megatron() -> None:
    asks = "import sys, rs_aligner.generation.engines; print('megatron' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", asks], capture_output=True, text=True, check=True, timeout=100
    )
    assert said.stdout == "False\n"
