"""The folder that weights travel through: whole or not there, the newest two, what an earlier start left."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file

from rs_aligner.generation.decoder import Exports
from rs_aligner.generation.vllm.canary import Canary
from rs_aligner.generation.vllm.folder import MARKER, WeightsFolder, remove
from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(300)
CANARY = Canary([(1, 2)], [((5,), (-0.5,))], bound=0.1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


@pytest.fixture
def arch(source: Path) -> Architecture:
    return read_architecture(source)


@pytest.fixture
def model(source: Path, arch: Architecture, rt: Runtime) -> GPTModel:
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(source, model, arch, rt)
    return model


@pytest.fixture
def exports(source: Path, tmp_path: Path, model: GPTModel, arch: Architecture, rt: Runtime) -> Exports:
    save = partial(
        huggingface.save_weights, model=model, arch=arch, runtime=rt, source=source, as_trained=True
    )
    return Exports(tmp_path / "weights", save)


@pytest.fixture
def folder(exports: Exports, arch: Architecture, rt: Runtime) -> WeightsFolder:
    return WeightsFolder(exports, arch, rt)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_is_written_are_the_models_weights_with_a_word_of_their_own(
    folder: WeightsFolder, exports: Exports, model: GPTModel, source: Path
) -> None:
    first, second = folder.write(0, CANARY), folder.write(1, CANARY)
    assert first.folder == exports.root / "step_000000"
    assert (first.version, second.version) == (0, 1)
    assert (second.folder / MARKER).read_text().strip() == second.word != first.word
    written, before = (load_file(one / "model.safetensors") for one in (second.folder, source))
    assert all(torch.equal(written[name], before[name].float()) for name in before)
    assert second.canary.problem(CANARY.continuations) is None
    assert (second.name("policy"), second.folder.is_absolute()) == ("policy", True)


def test_weights_keep_the_type_that_they_are_trained_in(
    folder: WeightsFolder, source: Path, model: GPTModel
) -> None:
    config = source / "config.json"
    config.write_text(config.read_text().replace("float32", "bfloat16"))
    sent = folder.write(3, CANARY)
    assert {tensor.dtype for tensor in load_file(sent.folder / "model.safetensors").values()} == {
        torch.float32
    }


def test_the_newest_two_stay(folder: WeightsFolder, exports: Exports) -> None:
    for version in (0, 1, 2, 5):
        folder.write(version, CANARY)
    assert names(exports.root) == ["step_000002", "step_000005"]


def test_a_folder_that_lacks_a_tensor_is_told_before_any_server_is_asked(
    exports: Exports, arch: Architecture, rt: Runtime
) -> None:
    def cut(path: Path) -> None:
        exports.whole(path)
        tensors = load_file(path / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, path / "model.safetensors")

    with pytest.raises(ValueError, match=r"lacks the tensor model\.norm\.weight"):
        WeightsFolder(Exports(exports.root, cut), arch, rt).write(4, CANARY)
    assert not (exports.root / "step_000004" / MARKER).exists()


def test_a_run_that_goes_on_finds_what_its_servers_had(folder: WeightsFolder, exports: Exports) -> None:
    for version in (4, 6):
        folder.write(version, CANARY)
    kept = folder.write(4, CANARY)
    found = folder.newest(5, most=1)
    assert found is not None
    assert (found.version, found.word) == (4, kept.word)
    assert names(exports.root) == ["step_000004"]  # version 6 is of a run that was not


def test_what_is_too_old_half_or_damaged_is_not_found(folder: WeightsFolder, exports: Exports) -> None:
    folder.write(4, CANARY)
    assert folder.newest(6, most=1) is None
    assert folder.newest(4, most=3) is None  # the present weights themselves are written again
    (folder.write(5, CANARY).folder / "rs_aligner_canary.json").write_text("{}")
    assert folder.newest(6, most=1) is None
    (exports.root / "step_000005" / MARKER).unlink()
    (exports.root / "step_000007.partial").mkdir()
    assert folder.newest(6, most=2) is not None
    assert names(exports.root) == ["step_000004"]


def test_all_of_it_goes_at_the_end(folder: WeightsFolder, exports: Exports) -> None:
    folder.write(4, CANARY)
    remove(exports.root)
    assert not exports.root.exists()
