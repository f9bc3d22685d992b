"""A policy and its tokenizer: ids that are no token, what is saved of end tokens, special tokens that end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.config import GenerationConfig, LengthParams, PolicyModelBase, SamplingParams
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.sampler import Decoding, load_sampler
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt
from rs_aligner.sample_request import SampleRequest
from tests.chat_models import BYTES, SPECIAL, chatml_on_a_base, llama3, save_tokenizer
from tests.tiny import SIZES

pytestmark = pytest.mark.timeout(120)
CONFIG: dict[str, Any] = {"global_batch_size": 2, "data": {"data_prefix": {"train": "unused"}}}


def save_model(folder: Path, vocab_size: int, **keys: Any) -> Path:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": vocab_size}, tie_word_embeddings=True, **keys)
    named = folder / "generation_config.json"
    kept = named.read_text() if named.is_file() else None
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    named.unlink(missing_ok=True)  # transformers writes one of its own
    if kept is not None:
        named.write_text(kept)
    return folder


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
def test_ids_without_a_token_are_never_sampled(rt: Runtime, tmp_path: Path, compiled: bool) -> None:
    """The vocabulary is padded to 320, has a hole in the middle, and an added token behind the bytes."""
    folder = save_tokenizer(tmp_path, SPECIAL["chatml"], eos="<|endoftext|>", named=0, words=["<word>"])
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    last = BYTES[-1]
    assert made["model"]["vocab"][last] == 258
    made["model"]["vocab"][last] = 300
    path.write_text(json.dumps(made))
    tokenizer = Tokenizer(save_model(folder, 320))
    known = tokenizer.known_ids(320)
    assert tokenizer.token("<word>") == 259
    assert known.tolist() == [i < 258 or i in (259, 300) for i in range(320)]
    sampler = load_sampler(
        folder,
        rt,
        tokenizer,
        seed=1,
        generation=Decoding(GenerationConfig(engine="kernels" if compiled else "torch")),
    )
    asked = SampleRequest(
        [Prompt("p", "a", (60,))],
        64,
        SamplingParams(temperature=9),
        LengthParams(max_length=32, min_length=1),
    )
    sampled = {token for rollout in sampler.generate(asked) for token in rollout.token_ids}
    assert len(sampled) > 200  # almost uniform, so that others would be among them
    assert sampled <= {i for i in range(320) if known[i]}


@pytest.mark.parametrize("part", ["final", "step_000001/huggingface"])
def test_what_is_saved_stops_where_training_taught_to(rt: Runtime, tmp_path: Path, part: str) -> None:
    folder = save_model(chatml_on_a_base(tmp_path / "base"), 259, eos_token_id=0, bos_token_id=None)
    tokenizer = Tokenizer(folder)
    config = PolicyModelBase.model_validate(CONFIG)
    policy = MegatronPolicy(folder, config, rt, tokenizer, optimization=Optimization(lambda step: 0.0))
    policy.export(tmp_path / "final")
    policy.save(tmp_path / "step_000001", {})
    saved = json.loads((tmp_path / part / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [0, 2]  # the end of a text, and of a turn
    assert json.loads((tmp_path / part / "config.json").read_text())["eos_token_id"] == [0, 2]
    assert Tokenizer(tmp_path / part).end_token_changes == {}
    if part == "final":
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / part)
        assert model.generation_config.eos_token_id == [0, 2]


def test_an_end_string_that_is_a_token_is_taught_and_saved(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, SPECIAL["chatml"], eos="<|endoftext|>", named=0))
    tokenizer.configure(end_strings=["<|im_end|>", "</answer>"])
    assert tokenizer.end_token_changes == {"eos_token_id": [0, 2]}
    assert tokenizer.eos_ids == (0,)  # held-out prompts may be sampled without it


def test_a_model_that_names_all_its_ends_is_saved_as_it_is(tmp_path: Path) -> None:
    assert Tokenizer(llama3(tmp_path)).end_token_changes == {}
