"""A folder's tensors are those of its model, all of them and no others; told before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.stored import read_safetensors
from rs_aligner.model.tensors import check_tensors, expected
from tests.tiny import FAMILIES, save_tiny

pytestmark = pytest.mark.timeout(60)
FILE, HEAD, EMBEDDING = "model.safetensors", "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Rewrite the weights with some tensors replaced, added, or left out (None)."""
    kept = {**load_file(folder / FILE), **tensors}
    save_file({name: t for name, t in kept.items() if t is not None}, folder / FILE, {"format": "pt"})


def configure(folder: Path, **changes: object) -> Architecture:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return read_architecture(folder)


def problem(folder: Path) -> str:
    with pytest.raises(ValueError, match="llama") as error:
        check_tensors(folder, read_architecture(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_that_are_expected_are_those_that_transformers_writes(
    tmp_path: Path, family: str
) -> None:
    arch = read_architecture(save_tiny(family, tmp_path))
    written = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / FILE).items()}
    assert expected(arch) == written
    assert {name: stored.shape for name, stored in check_tensors(tmp_path, arch).items()} == written


def test_the_tensors_of_a_reward_model_are_those_that_transformers_writes(tmp_path: Path) -> None:
    config = FAMILIES["qwen2"]()
    config.num_labels = 1
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    arch = read_architecture(tmp_path)
    assert set(check_tensors(tmp_path, arch)) == set(expected(arch))
    assert SCORE in expected(arch)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            [f"model.layers.{i}.self_attn.{x}_proj.bias" for i in range(4) for x in "qkvo"],
            ["16 tensors", "model.layers.0.self_attn.q_proj.bias", "13 more", "without biases"],
        ),
        (["model.layers.1.mlp.down_proj.bias"], ["1 tensor that", "mlp.down_proj.bias", "without biases"]),
        (["model.layers.4.mlp.up_proj.weight"], ["layer 4", "num_hidden_layers says 4", "config.json"]),
        (["model.layers.2.self_attn.q_norm.weight"], ["q_norm.weight", "save_pretrained"]),
        (["model.layers.0.mlp.up_proj.weight_scale"], ["weight_scale", "save_pretrained"]),
        (["lora.weight"], ["lora.weight", "save_pretrained"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_tensors_that_nobody_reads_are_named_with_what_would_work(
    folder: Path, names: list[str], words: list[str]
) -> None:
    change(folder, {name: torch.ones(32) for name in names})
    found = problem(folder)
    assert all(word in found for word in words), found


def test_a_config_with_fewer_layers_than_the_file_is_told(folder: Path) -> None:
    configure(folder, num_hidden_layers=2)
    assert "They go up to layer 3, and num_hidden_layers says 2" in problem(folder)


def test_buffers_of_old_transformers_do_no_harm(folder: Path) -> None:
    change(folder, {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)})
    check_tensors(folder, read_architecture(folder))


def test_an_output_layer_that_differs_from_the_embedding_it_is_tied_to_is_told(folder: Path) -> None:
    assert read_architecture(folder).tied_embeddings
    embedding = load_file(folder / FILE)[EMBEDDING]
    change(folder, {HEAD: embedding.clone()})
    check_tensors(folder, read_architecture(folder))
    other = embedding.clone()
    other[-1, -1] += 1e-3
    change(folder, {HEAD: other})
    found = problem(folder)
    assert all(word in found for word in (HEAD, EMBEDDING, "tie_word_embeddings")), found
    check_tensors(folder, configure(folder, tie_word_embeddings=False))


def test_the_line_that_writes_a_folder_anew_leaves_out_what_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    change(folder, {"model.layers.0.mlp.norm.weight": torch.zeros(96, 32), "lora.weight": torch.ones(3)})
    command = problem(folder).split('python -c "')[1].split('"')[0]
    exec(command, {})
    check_tensors(Path("NEW"), read_architecture(Path("NEW")))


def test_missing_tensors_are_named(folder: Path) -> None:
    change(folder, {f"model.layers.{i}.mlp.up_proj.weight": None for i in range(4)})
    found = problem(folder)
    assert "lacks the tensors model.layers.0.mlp.up_proj.weight, " in found
    assert "and 1 more" in found
    configure(folder, num_hidden_layers=1)
    change(folder, {"model.layers.0.mlp.up_proj.weight": None})
    assert "lacks the tensor model.layers.0.mlp.up_proj.weight, " in problem(folder)


def test_a_model_without_output_layer_is_told_how_it_might_be_tied(folder: Path) -> None:
    configure(folder, tie_word_embeddings=False)
    assert "lacks the tensor lm_head.weight" in problem(folder)
    assert "set tie_word_embeddings to true" in problem(folder)


def test_a_bare_trunk_is_told_where_an_output_layer_is_missing(folder: Path) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / FILE).items()}
    save_file(bare, folder / FILE, {"format": "pt"})
    arch = read_architecture(folder)
    assert set(check_tensors(folder, arch)) == set(expected(arch))
    configure(folder, tie_word_embeddings=False)
    assert "lacks the tensor lm_head.weight" in problem(folder)
    assert "a bare trunk (saved by AutoModel); save it with AutoModelForCausalLM" in problem(folder)


def test_a_reward_model_is_begun_from_a_folder_with_or_without_output_layer(tmp_path: Path) -> None:
    folder = save_tiny("qwen3", tmp_path / "qwen3")
    reward = replace(read_architecture(folder), value_head=True, tied_embeddings=False)
    check_tensors(folder, reward, leave=(SCORE,))
    change(folder, {HEAD: None})
    check_tensors(folder, reward, leave=(SCORE,))
    with pytest.raises(ValueError, match=f"lacks the tensor {SCORE}"):
        check_tensors(folder, reward)


def test_quantised_weights_are_told(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change(folder, {name: torch.zeros(80, 32, dtype=torch.int8)})
    assert f"{name} is stored as I8: quantised weights are not read" in problem(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-100], "was cut short"),
        (lambda data: data[:2000], "no safetensors file, or a damaged one"),
        (lambda data: data[:5], "no safetensors file, or a damaged one"),
        (lambda data: b"", "no safetensors file, or a damaged one"),
        (lambda data: b"\xff" * 8 + data[8:], "no safetensors file, or a damaged one"),
        (lambda data: data[:8] + b"[" + data[9:], "no safetensors file, or a damaged one"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_not_all_there_is_one_line(folder: Path, spoil: object, words: str) -> None:
    assert callable(spoil)
    (folder / FILE).write_bytes(spoil((folder / FILE).read_bytes()))
    found = problem(folder)
    assert words in found
    assert str(folder / FILE) in found


def test_parts_are_found_through_their_index_and_missing_ones_named(folder: Path) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / FILE).unlink()
    whole.save_pretrained(folder, max_shard_size="20KB")
    arch = read_architecture(folder)
    assert set(check_tensors(folder, arch)) == set(expected(arch))
    part = sorted(folder.glob("*.safetensors"))[1]
    part.unlink()
    assert f"lacks {part.name}, named in model.safetensors.index.json" in problem(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "is no index" in problem(folder)


def test_a_tensors_bytes_are_where_the_header_says(folder: Path) -> None:
    stored = read_safetensors(folder / FILE)[EMBEDDING]
    data = (folder / FILE).read_bytes()[stored.start : stored.end]
    expected_bytes = load_file(folder / FILE)[EMBEDDING].numpy().tobytes()
    assert data == expected_bytes
    assert (stored.dtype, stored.shape) == ("F32", (96, 32))
