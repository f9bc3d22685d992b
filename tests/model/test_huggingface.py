"""Hugging Face folders as they come: in one file or several, complete or not, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file

from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import BIN_INDEX, INDEX
from rs_aligner.policy import checkpoint
from tests.policy.layout_program import new_trainer
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("qwen2", tmp_path / "qwen2")


@pytest.fixture
def arch(folder: Path) -> Architecture:
    return read_architecture(folder)


@pytest.fixture
def model(arch: Architecture, rt: Runtime) -> GPTModel:
    return build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Rewrite the weights with some tensors replaced, or left out (None)."""
    kept = {**load_file(folder / FILE), **tensors}
    save_file({name: t for name, t in kept.items() if t is not None}, folder / FILE, {"format": "pt"})


def test_weights_in_several_files_are_read_through_their_index(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime
) -> None:
    expected = load_file(folder / FILE)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / FILE).unlink()
    whole.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    huggingface.load_weights(folder, model, arch, rt)
    tensors = huggingface.gather_tensors(model, arch, rt)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("is_pickled", [False, True], ids=["safetensors", "bin in two parts"])
def test_tensors_of_several_types_are_each_read_in_their_own(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime, is_pickled: bool
) -> None:
    """Those of one parameter, as queries, keys and values, among them."""
    types = (torch.float16, torch.bfloat16, torch.float32)
    whole = load_file(folder / FILE)
    # Copies, since `whole` may lie in the very file that is written over.
    stored = {name: one.to(types[i % len(types)], copy=True) for i, (name, one) in enumerate(whole.items())}
    if is_pickled:
        (folder / FILE).unlink()
        files = {name: f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin" for i, name in enumerate(stored)}
        for file in set(files.values()):
            torch.save({name: one for name, one in stored.items() if files[name] == file}, folder / file)
        (folder / BIN_INDEX).write_text(json.dumps({"weight_map": files}))
    else:
        save_file(stored, folder / FILE, {"format": "pt"})
    huggingface.load_weights(folder, model, arch, rt)
    tensors = huggingface.gather_tensors(model, arch, rt)
    assert all(torch.equal(tensors[name], tensor.float()) for name, tensor in stored.items())


def test_a_missing_tensor_is_named(folder: Path, model: GPTModel, arch: Architecture, rt: Runtime) -> None:
    name = "model.layers.2.self_attn.k_proj.bias"
    change(folder, {name: None})
    with pytest.raises(ValueError, match=f"lacks the tensor {name}") as error:
        huggingface.load_weights(folder, model, arch, rt)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (90, 32)),
        ("model.norm.weight", (30,)),
        ("model.layers.0.mlp.down_proj.weight", (32, 70)),
        ("model.layers.1.mlp.up_proj.weight", (70, 32)),
        ("model.layers.3.self_attn.q_proj.weight", (30, 32)),
        ("model.layers.3.self_attn.v_proj.weight", (16, 30)),
    ],
)
def test_a_tensor_of_another_shape_than_the_config_says_is_named(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime, name: str, shape: tuple[int, ...]
) -> None:
    change(folder, {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"config\.json asks for") as error:
        huggingface.load_weights(folder, model, arch, rt)
    assert name in str(error.value)
    assert str(folder) in str(error.value)


def test_a_folder_without_weights_is_refused(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime
) -> None:
    (folder / FILE).rename(folder / "weights.pt")
    with pytest.raises(ValueError, match=r"has no model\.safetensors, no pytorch_model\.bin"):
        huggingface.load_weights(folder, model, arch, rt)


def test_an_exported_folder_has_everything_but_old_weights(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime, tmp_path: Path
) -> None:
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "pytorch_model.bin",
        "README.md",
        BIN_INDEX,
    ):
        (folder / name).write_text("{}")
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}))
    out = tmp_path / "run" / "final"
    out.mkdir(parents=True)
    (out / "old.txt").write_text("of an earlier export")
    huggingface.save_weights(out, model, arch, rt, folder)
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "merges.txt"),
        FILE,
    }
    assert [path.name for path in out.parent.iterdir()] == ["final"]


def test_bf16_weights_survive_the_way_through_single_precision(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime
) -> None:
    change(folder, {name: tensor.bfloat16() for name, tensor in load_file(folder / FILE).items()})
    huggingface.load_weights(folder, model, arch, rt)
    tensors = huggingface.gather_tensors(model, arch, rt)
    for name, tensor in load_file(folder / FILE).items():
        assert tensors[name].dtype == torch.float32
        assert torch.equal(tensors[name].bfloat16(), tensor)


def in_type(folder: Path, dtype: torch.dtype, key: str | None = "dtype", named: str | None = None) -> None:
    """Rewrite a folder's weights in a type, named in its config under a key, or not at all."""
    change(folder, {name: tensor.to(dtype) for name, tensor in load_file(folder / FILE).items()})
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    if key is not None:
        config[key] = named or str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_was_trained_in_float32_has_the_type_of_what_it_came_from(
    folder: Path,
    model: GPTModel,
    arch: Architecture,
    rt: Runtime,
    tmp_path: Path,
    dtype: torch.dtype,
    key: str | None,
) -> None:
    in_type(folder, dtype, key)
    huggingface.load_weights(folder, model, arch, rt)
    trained = huggingface.gather_tensors(model, arch, rt)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    huggingface.save_weights(tmp_path / "final", model, arch, rt, folder)
    written = load_file(tmp_path / "final" / FILE)
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    assert all(torch.equal(written[name], tensor.to(dtype)) for name, tensor in trained.items())
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    named = {name: config[name] for name in ("dtype", "torch_dtype") if name in config}
    assert named == {key or "dtype": str(dtype).removeprefix("torch.")}
    assert (tmp_path / "final" / FILE).stat().st_size == (folder / FILE).stat().st_size
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype="auto")
    assert loaded.dtype == dtype


def test_the_config_decides_where_its_files_have_another_type(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime, tmp_path: Path
) -> None:
    in_type(folder, torch.float32, named="bfloat16")
    huggingface.load_weights(folder, model, arch, rt)
    huggingface.save_weights(tmp_path / "final", model, arch, rt, folder)
    assert {tensor.dtype for tensor in load_file(tmp_path / "final" / FILE).values()} == {torch.bfloat16}


def test_a_weight_too_large_for_the_type_is_not_written_as_infinity(
    folder: Path,
    model: GPTModel,
    arch: Architecture,
    rt: Runtime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_type(folder, torch.float16)
    huggingface.load_weights(folder, model, arch, rt)
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1e6
    with caplog.at_level("WARNING", "rs_aligner"):
        huggingface.save_weights(tmp_path / "final", model, arch, rt, folder)
    assert "1e+06, too much for float16: float32 is written" in caplog.text
    written = load_file(tmp_path / "final" / FILE)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert json.loads((tmp_path / "final" / "config.json").read_text())["dtype"] == "float32"


def test_an_export_that_rounds_says_so(
    folder: Path,
    model: GPTModel,
    arch: Architecture,
    rt: Runtime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "rs_aligner"):
        huggingface.save_weights(tmp_path / "final", model, arch, rt, folder)
        assert caplog.text == ""
        in_type(folder, torch.bfloat16)
        huggingface.save_weights(tmp_path / "final", model, arch, rt, folder)
    assert "is rounded to bfloat16" in caplog.text
    assert "checkpoints keep float32" in caplog.text


@pytest.mark.parametrize("key", ["torch_dtype", None])
def test_a_checkpoint_remembers_the_type_and_keeps_every_bit(
    folder: Path, arch: Architecture, rt: Runtime, tmp_path: Path, key: str | None
) -> None:
    """Where the source's config names no type, its files do; a checkpoint has none of them to ask later."""
    in_type(folder, torch.bfloat16, key)
    trainer = new_trainer(folder, rt, distributed=True)
    model = trainer.ddp.module
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1 / 3
    step = tmp_path / "step_000001"
    checkpoint.save(step, trainer, rt, {}, folder)
    config = json.loads((step / "huggingface" / "config.json").read_text())
    assert config[key or "dtype"] == "bfloat16"

    again = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    checkpoint.load_weights(step, again, rt)
    assert float(next(again.parameters())[0, 0]) == float(torch.tensor(1 / 3))
    huggingface.save_weights(tmp_path / "final", again, arch, rt, step / "huggingface")
    assert {tensor.dtype for tensor in load_file(tmp_path / "final" / FILE).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.norm.weight", 0.0, "is all zero, which no trained model's is"),
        ("model.embed_tokens.weight", 0.0, "is all zero"),
        ("model.layers.2.mlp.down_proj.weight", 0.0, "is all zero"),
        ("model.layers.1.self_attn.q_proj.bias", 0.0, None),  # a bias may be
        ("model.layers.3.self_attn.k_proj.weight", float("nan"), "has numbers that are not finite"),
        ("model.layers.0.input_layernorm.weight", float("-inf"), "has numbers that are not finite"),
    ],
)
def test_numbers_that_no_training_leaves_are_told_with_file_and_tensor(
    folder: Path, model: GPTModel, arch: Architecture, rt: Runtime, name: str, value: float, words: str | None
) -> None:
    tensor = load_file(folder / FILE)[name]
    if value == 0.0:
        change(folder, {name: torch.zeros_like(tensor)})
    else:
        tensor.view(-1)[-1] = value
        change(folder, {name: tensor})
    if words is None:
        huggingface.load_weights(folder, model, arch, rt)
        return
    with pytest.raises(ValueError, match=words) as error:
        huggingface.load_weights(folder, model, arch, rt)
    assert str(error.value).startswith(f"{folder / FILE}: {name} ")
    assert "\n" not in str(error.value)
