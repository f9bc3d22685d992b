"""A model folder that cannot be used is told before anything of it is loaded, whatever it is for."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.folder import fingerprint, read_model_folder
from tests.tiny import save_more_tokens, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)
KEY = "the.key"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_with_tokenizer(tmp_path / "model")


def test_more_tokens_than_the_embedding_has_rows_are_told_with_both_numbers(folder: Path) -> None:
    tokenizer, arch = read_model_folder(str(folder), KEY)
    assert tokenizer.num_ids == arch.vocab_size == 258
    save_more_tokens(folder, 3)
    words = ("261 tokens", "added ones included", "258", "vocab_size", "model.resize_token_embeddings(261)")
    for resize in (None, False):
        with pytest.raises(ValueError, match="with transformers") as error:
            read_model_folder(str(folder), KEY, resize=resize)
        assert all(word in str(error.value) for word in words)
        named = "pretrained_checkpoint.resize_token_embeddings=true" in str(error.value)
        assert named == (resize is False)


def test_rows_for_more_tokens_are_counted_on_request_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rs_aligner"):
        assert read_model_folder(str(folder), KEY, resize=True)[1] == read_architecture(folder)
        assert not caplog.records
        save_more_tokens(folder, 3)
        tokenizer, arch = read_model_folder(str(folder), KEY, resize=True)
    assert (tokenizer.num_ids, arch.vocab_size) == (261, 320)
    assert "261 tokens, added ones included, the embedding 258: it gets 320" in caplog.text


def test_what_the_message_advises_works(folder: Path) -> None:
    save_more_tokens(folder, 3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(261)
    model.save_pretrained(folder)
    tokenizer, arch = read_model_folder(str(folder), KEY)
    assert tokenizer.num_ids == arch.vocab_size == 261


def test_an_embedding_with_more_rows_than_tokens_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 320}))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = torch.zeros(320, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer, arch = read_model_folder(str(folder), KEY)
    assert (tokenizer.num_ids, arch.vocab_size) == (258, 320)


@pytest.mark.parametrize("use", ["generate", "score", "train_scoring"])
def test_each_use_looks_at_kind_and_tensors(folder: Path, use: str) -> None:
    with pytest.raises(ValueError, match=r"the\.key is '/no/such': is not there"):
        read_model_folder("/no/such", KEY, use=use)  # type: ignore[arg-type]  # any of the uses, as a text
    if use == "score":
        config = json.loads((folder / "config.json").read_text())
        head = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
        (folder / "config.json").write_text(json.dumps({**config, **head}))
    weights = load_file(folder / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32), "score.weight": torch.ones(1, 32)}
    save_file({**weights, **bias}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        read_model_folder(str(folder), KEY, use=use)  # type: ignore[arg-type]  # any of the uses, as a text


def test_a_language_model_does_not_score_and_a_reward_model_does_not_generate(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"the\.key: .* is no reward model .*train one with `rs-aligner reward-model`"
    ):
        read_model_folder(str(folder), KEY, use="score")
    read_model_folder(str(folder), KEY, use="train_scoring")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "reward" / name).write_bytes((folder / name).read_bytes())
    for use in ("score", "train_scoring"):
        # Any of the uses, as a text.
        read_model_folder(str(tmp_path / "reward"), KEY, use=use)  # type: ignore[arg-type]  # any text
    with pytest.raises(ValueError, match=r"the\.key: .* is a reward model.*cannot generate"):
        read_model_folder(str(tmp_path / "reward"), KEY)


def test_a_fingerprint_is_of_what_is_read_and_not_of_where_it_lies(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("nobody reads it")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(elsewhere) == fingerprint(folder) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (elsewhere / name).write_bytes(content)
        assert fingerprint(elsewhere) != before
        shutil.copy(folder / name, elsewhere / name)
        assert fingerprint(elsewhere) == before
    (elsewhere / "tokenizer.json").rename(elsewhere / "other.json")
    assert fingerprint(elsewhere) != before
