"""`pytorch_model.bin`: the model of safetensors, looked at as closely; nothing in the file is ever run."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file

from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.folder import fingerprint, read_model_folder
from rs_aligner.model.folder_copy import export_dtype
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import BIN_INDEX, check_tensors
from rs_aligner.model.torch_file import TorchFile
from tests.tiny import save_tiny, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
FILE, BIN = "model.safetensors", "pytorch_model.bin"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights are both kinds of file."""
    folder = save_tiny("qwen2", tmp_path / "qwen2")
    torch.save(load_file(folder / FILE), folder / BIN)
    return folder


@pytest.fixture
def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Its weights, which are left as `pytorch_model.bin` only."""
    found: dict[str, torch.Tensor] = load_file(folder / FILE)
    (folder / FILE).unlink()
    return found


def in_parts(folder: Path, weights: dict[str, torch.Tensor]) -> list[str]:
    """Write weights as two files with an index, as `save_pretrained` did."""
    (folder / BIN).unlink()
    names = list(weights)
    parts = {f"pytorch_model-{i + 1:05d}-of-00002.bin": names[i::2] for i in range(2)}
    for file, of_file in parts.items():
        torch.save({name: weights[name] for name in of_file}, folder / file)
    where = {name: file for file, of_file in parts.items() for name in of_file}
    (folder / BIN_INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return list(parts)


def loaded(folder: Path, rt: Runtime) -> tuple[GPTModel, Architecture]:
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    huggingface.load_weights(folder, model, arch, rt)
    return model, arch


def problem(folder: Path) -> str:
    with pytest.raises(ValueError, match=str(folder)) as error:
        check_tensors(folder, read_architecture(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cut", [False, True])
def test_every_bit_is_read_and_exported_as_safetensors(
    folder: Path, weights: dict[str, torch.Tensor], rt: Runtime, cut: bool, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    torch.save(weights, folder / BIN)
    config = json.loads((folder / "config.json").read_text())
    named = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(named))
    if cut:
        in_parts(folder, weights)
    assert export_dtype(folder) == dtype  # where the config does not tell it, the files do
    model, arch = loaded(folder, rt)
    huggingface.save_weights(folder.parent / "final", model, arch, rt, folder)
    names = {path.name for path in (folder.parent / "final").iterdir()}
    assert names == {"config.json", "generation_config.json", FILE}
    written = load_file(folder.parent / "final" / FILE)
    assert set(written) == set(weights)
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())


def test_the_logits_are_those_that_transformers_has_of_the_same_file(
    folder: Path, weights: dict[str, torch.Tensor], rt: Runtime
) -> None:
    model, _ = loaded(folder, rt)
    tokens = torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(3))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        got = model.eval()(tokens, torch.arange(30).expand_as(tokens), None)
        assert (got - reference(tokens).logits).abs().max() < 1e-4


def test_safetensors_win_and_the_log_says_so(
    folder: Path, rt: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    other = {name: tensor + 1 for name, tensor in load_file(folder / FILE).items()}
    torch.save(other, folder / BIN)
    with caplog.at_level(logging.INFO, "rs_aligner"):
        model, arch = loaded(folder, rt)
    assert "the safetensors are read, and pytorch_model.bin beside them not" in caplog.text
    tensors = huggingface.gather_tensors(model, arch, rt)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(folder / FILE).items())


def test_a_fingerprint_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    before = fingerprint(folder)
    weights = load_file(folder / FILE)
    torch.save(weights, folder / BIN)
    (folder / "training_args.bin").write_text("nobody reads it")
    assert fingerprint(folder) == before
    (folder / FILE).unlink()
    of_bin = fingerprint(folder)
    assert of_bin != before
    weights[EMBEDDING][0, 0] += 1
    torch.save(weights, folder / BIN)
    assert fingerprint(folder) != of_bin


def test_a_folder_of_bin_is_used_like_any_other(tmp_path: Path) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    torch.save(load_file(folder / FILE), folder / BIN)
    (folder / FILE).unlink()
    _, arch = read_model_folder(str(folder), "the.key")
    assert arch == read_architecture(folder)
    read_model_folder(str(folder), "the.key", use="train_scoring")


# What is looked at


def test_missing_superfluous_misshapen_and_quantised_tensors_are_named(
    folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for change, words in (
        ({name: None}, f"lacks the tensor {name}"),
        ({name: torch.ones(70, 32)}, f"{name} [70, 32] cannot be"),
        ({name: torch.ones(80, 32, dtype=torch.int8)}, f"{name} is stored as torch.int8: quantised weights"),
        ({"lora.weight": torch.ones(3)}, "lora.weight"),
    ):
        kept = {key: tensor for key, tensor in {**weights, **change}.items() if tensor is not None}
        torch.save(kept, folder / BIN)
        assert words in problem(folder)


def test_a_tie_is_looked_at(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    arch, weights = read_architecture(folder), load_file(folder / FILE)
    (folder / FILE).unlink()
    assert arch.tied_embeddings
    for head in (weights[EMBEDDING], weights[EMBEDDING].clone()):  # one storage, as save_pretrained had it
        torch.save({**weights, HEAD: head}, folder / BIN)
        check_tensors(folder, arch)
    torch.save({**weights, HEAD: weights[EMBEDDING] + 1e-3}, folder / BIN)
    assert "tie_word_embeddings: true" in problem(folder)


@pytest.mark.parametrize(("value", "words"), [(0.0, "is all zero"), (float("nan"), "are not finite")])
def test_numbers_that_no_training_leaves_are_told(
    folder: Path, weights: dict[str, torch.Tensor], rt: Runtime, value: float, words: str
) -> None:
    name = "model.layers.3.self_attn.k_proj.weight"
    torch.save({**weights, name: torch.full_like(weights[name], value)}, folder / BIN)
    with pytest.raises(ValueError, match=words) as error:
        loaded(folder, rt)
    assert f"{folder / BIN}: {name}" in str(error.value)


def test_parts_that_are_missing_are_named(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    parts = in_parts(folder, weights)
    (folder / parts[1]).unlink()
    assert f"lacks {parts[1]}, named in {BIN_INDEX}" in problem(folder)
    (folder / BIN_INDEX).write_text("[]")
    assert "is no index of weights" in problem(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-200], "damaged, or was cut short"),
        (lambda data: data[: len(data) // 2], "damaged, or was cut short"),
        (lambda data: b"", "is no file of PyTorch's (0 bytes)"),
        (lambda data: b"<html>" + data, "is no file of PyTorch's"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_not_all_there_is_one_line(
    folder: Path, weights: dict[str, torch.Tensor], spoil: Callable[[bytes], bytes], words: str
) -> None:
    (folder / BIN).write_bytes(spoil((folder / BIN).read_bytes()))
    found = problem(folder)
    assert words in found
    assert str(folder / BIN) in found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a": torch.ones(1)}}, "a dict under 'model'"),
        ({"step": 3}, "'step' is a int and no tensor"),
        ([torch.ones(1)], "no tensors by name but a list"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is sparse"),
    ],
)
def test_what_is_no_state_dict_is_told(
    folder: Path, weights: dict[str, torch.Tensor], content: object, words: str
) -> None:
    torch.save(content, folder / BIN)
    assert words in problem(folder)


def test_the_line_for_a_file_from_before_zip_archives_works(
    folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    torch.save(weights, folder / BIN, _use_new_zipfile_serialization=False)
    found = problem(folder)
    assert "is in the format of PyTorch before 1.6" in found
    exec(found.split('python -c "')[1].removesuffix('"'), {})
    arch = read_architecture(folder)
    assert set(check_tensors(folder, arch)) == set(weights)


# What would run code


class Opens:
    """Once unpickled, a file is made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(
    folder: Path, weights: dict[str, torch.Tensor], rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder.parent / "made"
    torch.save({**weights, "x": Opens(made)}, folder / BIN)
    with zipfile.ZipFile(folder / BIN) as archive:  # the trap is one: without care it goes off
        name = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
        assert b"mkdir" in archive.read(name)
    torch.load(folder / BIN, weights_only=False)
    made.rmdir()

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # no setting of torch's own undoes it
    found = problem(folder)
    assert f"{folder / BIN} has more in it than tensors, posix.mkdir among it" in found
    assert "could run code, so it is refused" in found
    with pytest.raises(ValueError, match="refused"):
        loaded(folder, rt)
    assert not made.exists()


def test_a_bare_pickle_is_not_run_either(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    made = folder.parent / "made"
    for protocol in (0, 2, 4):
        (folder / BIN).write_bytes(pickle.dumps({"x": Opens(made)}, protocol=protocol))
        problem(folder)
    in_parts(folder, weights)
    torch.save({"x": Opens(made)}, folder / "pytorch_model-00002-of-00002.bin")
    assert "posix.mkdir" in problem(folder)
    assert not made.exists()


# Memory


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="the system does not tell what is resident"
)
def test_what_nobody_takes_of_a_tensor_stays_on_the_disk(tmp_path: Path) -> None:
    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    size = 64 << 20
    torch.save({"a": torch.ones(size // 4096, 1024)}, tmp_path / BIN)
    before = resident()
    with TorchFile(tmp_path / BIN) as opened:
        assert opened.header(tmp_path / BIN)["a"].shape == (size // 4096, 1024)
        assert float(opened.get_slice("a")[5:9].sum()) == 4096
        assert resident() - before < size // 4
