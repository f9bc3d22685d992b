"""What configs of the Llama line ask for besides sizes: logits, decoders and folders are transformers'."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file

from rs_aligner.config import GenerationConfig, PolicyModelBase
from rs_aligner.config.training import ModelBase
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.architecture import MLP_BIAS, PROJECTION_BIAS, Rope
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt, TrainingRow
from tests.drawing import request_of
from tests.policy.objective_cases import NoText
from tests.tiny import SIZES, YARN_ROPE, save_random

pytestmark = pytest.mark.timeout(120)
WINDOW = 12
WINDOWED = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
SHORT = {**SIZES, "max_position_embeddings": 32}
DECLARED: dict[str, Any] = {"attention_factor": 1.3, "beta_fast": 4, "beta_slow": 0.5, "truncate": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 0.5,
    "high_freq_factor": 8.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CASES: dict[str, Callable[[], Any]] = {
    "mistral with a window": lambda: transformers.MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2 with a window": lambda: transformers.Qwen2Config(**SIZES, **WINDOWED),
    "qwen3 with a window": lambda: transformers.Qwen3Config(**SIZES, head_dim=16, **WINDOWED),
    "llama with linear scaling": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "llama with biases in attention": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True),
    "llama with biases in MLPs": lambda: transformers.LlamaConfig(**SIZES, mlp_bias=True),
    "qwen3 with biases": lambda: transformers.Qwen3Config(**SIZES, head_dim=16, attention_bias=True),
    "qwen2 with linear scaling": lambda: transformers.Qwen2Config(**SIZES, rope_parameters=LINEAR),
    "llama with yarn scaling": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=YARN_ROPE),
    "qwen2 with yarn scaling beyond its positions": lambda: transformers.Qwen2Config(
        **SHORT, rope_parameters=YARN_ROPE
    ),
    "qwen3 with declared yarn scaling": lambda: transformers.Qwen3Config(
        **SIZES, head_dim=16, rope_parameters={**YARN_ROPE, **DECLARED}
    ),
    "llama with llama3 scaling of its own": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral with a dynamic rope_type": lambda: transformers.MistralConfig(
        **SIZES, sliding_window=None, rope_parameters=DYNAMIC
    ),
}


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(CASES[request.param](), tmp_path_factory.mktemp("line"), seed=1)


def tokens_of(length: int) -> torch.Tensor:
    return torch.randint(96, (2, length), generator=torch.Generator().manual_seed(3))


def test_the_logits_are_those_of_transformers_up_to_the_longest_sequence(
    model: GPTModel, reference: torch.nn.Module, folder: Path
) -> None:
    longest = read_architecture(folder).max_positions
    tokens = tokens_of(longest)
    with torch.no_grad():
        got = model(tokens, torch.arange(longest).expand_as(tokens), None)
        expected = reference(tokens).logits
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("folder", [name for name in CASES if "window" in name], indirect=True)
def test_without_its_window_a_model_would_be_another_one_beyond_it(
    model: GPTModel, folder: Path, rt: Runtime
) -> None:
    arch = read_architecture(folder)
    assert arch.kinds
    arch = replace(arch, kinds=())
    plain = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, plain, arch, rt)
    tokens = tokens_of(4 * WINDOW)
    with torch.no_grad():
        places = torch.arange(4 * WINDOW).expand_as(tokens)
        differ = (model(tokens, places, None) - plain(tokens, places, None)).abs().amax((0, 2))
    assert differ[:WINDOW].max() < 1e-4
    assert differ[WINDOW:].min() > 1e-3


@pytest.mark.parametrize("folder", [name for name in CASES if "scaling" in name], indirect=True)
def test_without_its_scaling_a_model_would_be_another_one(model: GPTModel, folder: Path, rt: Runtime) -> None:
    arch = read_architecture(folder)
    arch = replace(arch, rope=Rope(theta=arch.rope.theta))
    plain = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, plain, arch, rt)
    tokens = tokens_of(20)
    with torch.no_grad():
        places = torch.arange(20).expand_as(tokens)
        assert (model(tokens, places, None) - plain(tokens, places, None)).abs().max() > 0.1


def test_the_loss_of_a_training_step_is_that_of_transformers(
    reference: torch.nn.Module, folder: Path, rt: Runtime
) -> None:
    tree = {"data": {"data_prefix": {"train": []}}, "micro_batch_size": 2, "global_batch_size": 2}
    policy = MegatronPolicy(
        folder,
        PolicyModelBase.model_validate(tree),
        rt,
        NoText(),  # type: ignore[arg-type]  # a stand-in
        optimization=Optimization(lambda step: 0.0),
    )
    rows = [tuple(tokens_of(length)[0].tolist()) for length in (48, 20)]  # two in a line
    stats = policy.step([TrainingRow(row[:5], row[5:]) for row in rows], 0.0)
    expected = []
    for row in rows:
        with torch.no_grad():
            log_probs = reference(torch.tensor([row])).logits[0].log_softmax(-1)
        expected.append(-float(log_probs[range(4, len(row) - 1), row[5:]].mean()))
    assert stats.loss == pytest.approx(sum(expected) / 2, abs=1e-5)


def is_run_by(engine: str, folder: Path) -> bool:
    """Whether a decoder knows all that a model's layers have."""
    return engine == "torch" or not read_architecture(folder).features & {PROJECTION_BIAS, MLP_BIAS}


@pytest.mark.parametrize("engine", ["kernels", "torch"])
def test_greedy_decoding_gives_the_tokens_of_the_full_forward(
    model: GPTModel,
    reference: torch.nn.Module,
    folder: Path,
    rt: Runtime,
    engine: Literal["kernels", "torch"],
) -> None:
    prompts = [tuple(tokens_of(n)[0].tolist()) for n in (1, 9, 30)]
    batch = [Prompt(str(i), "", prompt) for i, prompt in enumerate(prompts)]
    settings = GenerationConfig(engine=engine)
    if not is_run_by(engine, folder):
        with pytest.raises(ValueError, match=f"{MLP_BIAS}|{PROJECTION_BIAS}"):
            new_decoder(model, read_architecture(folder), rt, settings)
        settings = GenerationConfig()  # which takes another one by itself
    decoder = new_decoder(model, read_architecture(folder), rt, settings)
    asked = request_of(batch, 2, Controls(greedy=True, max_length=16))
    for rollout in generate(decoder, NoText(), asked, seed=1):
        tokens = list(prompts[rollout.group])
        for log_prob in rollout.log_probs:
            with torch.no_grad():
                last = reference(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            assert log_prob == pytest.approx(float(last.max()), abs=1e-4)
            tokens.append(int(last.argmax()))
        assert list(rollout.token_ids) == tokens[-16:]


def rope_in(folder: Path) -> dict[str, Any]:
    """What a config.json says of rotary positions, in whichever spelling."""
    config = json.loads((folder / "config.json").read_text())
    keys = ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings")
    return {key: config[key] for key in keys if key in config}


@pytest.mark.parametrize("folder", [name for name in CASES if "scaling" in name], indirect=True)
def test_the_spelling_of_transformers_4_is_the_same_model_and_is_kept(
    model: GPTModel, reference: torch.nn.Module, folder: Path, rt: Runtime, tmp_path: Path
) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    scaling["type"] = scaling.pop("rope_type")
    (old / "config.json").write_text(json.dumps(config))
    arch = read_architecture(old)
    assert arch == read_architecture(folder)
    huggingface.save_weights(tmp_path / "out", model, arch, rt, old)
    assert rope_in(tmp_path / "out") == rope_in(old)
    assert rope_in(old)["rope_scaling"] == scaling
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        assert torch.equal(loaded(tokens_of(100)).logits, reference(tokens_of(100)).logits)


def test_what_was_written_is_what_was_read_to_the_bit(
    model: GPTModel, reference: torch.nn.Module, folder: Path, rt: Runtime, tmp_path: Path
) -> None:
    arch = read_architecture(folder)
    huggingface.save_weights(tmp_path / "out", model, arch, rt, folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_architecture(tmp_path / "out") == arch
    assert rope_in(tmp_path / "out") == rope_in(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        assert torch.equal(loaded(tokens_of(100)).logits, reference(tokens_of(100)).logits)


@pytest.mark.parametrize(
    ("case", "longest", "words"),
    [
        ("llama with yarn scaling", 128, "at most 128 positions"),
        ("qwen2 with yarn scaling beyond its positions", 128, "at most 128 positions"),
        ("llama with llama3 scaling of its own", 128, "at most 128 positions"),
        ("mistral with a dynamic rope_type", 128, "dynamic rope_type makes another model for each length"),
    ],
)
def test_a_sequence_may_be_as_long_as_scaling_makes_it(case: str, longest: int, words: str) -> None:
    made = json.loads(CASES[case]().to_json_string(use_diff=False))
    for length in (longest, longest + 1):
        config = ModelBase.model_validate(
            {"encoder_seq_length": length, "data": {"data_prefix": {"train": "x"}}}
        )
        told = [*config.misfits("model", made)]
        assert bool(told) == (length > longest)
        assert all("model.encoder_seq_length is 129: " in one and words in one for one in told)


def test_a_dynamic_model_would_be_another_one_beyond_its_positions() -> None:
    """What the limit is for: transformers' own changes there."""
    torch.manual_seed(1)
    config = CASES["mistral with a dynamic rope_type"]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    with torch.no_grad():
        model(tokens_of(128))
        assert torch.equal(rotary.inv_freq, before)
        model(tokens_of(129))
        assert not torch.equal(rotary.inv_freq, before)
