"""Whatever else people have for a model is told by its name, with the way to a folder that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rs_aligner.megatron_folder import megatron_weights
from rs_aligner.model_folder import problem_with

pytestmark = pytest.mark.timeout(60)


def make(folder: Path, *files: str) -> str:
    """A folder with these files, a JSON object in each."""
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return str(folder)


def problem(path: str) -> str:
    found = problem_with(path)
    assert found is not None
    assert "\n" not in found
    return found


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "model.safetensors"),
        ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.json"),
        ("config.json", "pytorch_model.bin"),
        ("config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"),
        ("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "original/params.json"),
        ("huggingface/config.json", ".metadata", "metadata.json", "common.pt", "__0_0.distcp"),
        ("config.json", ".metadata", "metadata.json", "common.pt", "__0_0.distcp"),
        ("config.json", "weights/.metadata", "weights/__0_0.distcp", "context/model.yaml"),
        ("config.json", "model_weights/.metadata", "model_weights/__0_0.distcp", "model_config.yaml"),
        ("config.json", "iter_0000010/.metadata", "iter_0000010/__0_0.distcp", "iter_0000010/common.pt"),
        ("config.json", "model.nemo"),
    ],
)
def test_a_hugging_face_folder_a_checkpoint_of_a_run_and_one_of_megatrons_with_its_config_are_read(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    assert problem_with(make(tmp_path / "model", *files)) is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), ["PEFT adapter", "merge_and_unload"]),
        (("config.json", "model.safetensors", "adapter_config.json"), ["PEFT adapter", "merge"]),
        (("config.json", "zero_to_fp32.py", "latest"), ["DeepSpeed", "--safe_serialization"]),
        (
            ("config.json", "pytorch_model_fsdp_0/__0_0.distcp"),
            ["FSDP", "merge-weights pytorch_model_fsdp_0"],
        ),
        (("config.json", "pytorch_model-00001-of-00002.bin"), ["pytorch_model.bin.index.json", "fetch"]),
        (("config.json", "llama.Q4_K_M.gguf"), ["llama.Q4_K_M.gguf", "gguf_file", "Hugging Face folder"]),
        (("config.json", "tf_model.h5"), ["TensorFlow", "name a Hugging Face folder"]),
        (("config.json", "flax_model.msgpack"), ["Flax", "name a Hugging Face folder"]),
        (("model_config.yaml", "model_weights/.metadata"), ["NeMo", "convert_<model>_nemo_to_hf.py"]),
        (("context/model.yaml", "weights/__0_0.distcp"), ["NeMo", "export_ckpt"]),
        (("mp_rank_00/model_optim_rng.pt",), ["Megatron checkpoint of another program", "AutoBridge"]),
        (("latest_checkpointed_iteration.txt", "iter_0000010/x.pt"), ["Megatron", "AutoBridge"]),
        (
            ("metadata.json", "common.pt", ".metadata", "__0_0.distcp"),
            [
                "Megatron",
                "no config.json to say of what model",
                "copy config.json and the tokenizer's files into",
            ],
        ),
        (
            ("weights/.metadata", "weights/__0_0.distcp", "context/model.yaml", "context/io.json"),
            ["Megatron", "copy config.json and the tokenizer's files into"],
        ),
        (
            (
                "config.json",
                *(f"iter_000000{n}/{name}" for n in (1, 2) for name in (".metadata", "__0_0.distcp")),
            ),
            ["several of Megatron's checkpoints", "latest_checkpointed_iteration.txt", "/iter_0000001"],
        ),
        (("params.json", "consolidated.00.pth", "tokenizer.model"), ["consolidated", "Hugging Face version"]),
        (("huggingface/config.json",), ["checkpoint without its weights"]),
        (("model.safetensors", "tokenizer.json"), ["no config.json"]),
        (("config.json", "model-00001-of-00002.safetensors"), ["model.safetensors.index.json", "fetch"]),
        (("tokenizer.json", "tokenizer_config.json"), ["tokenizer only", "name a Hugging Face folder"]),
        (("config.json", "tokenizer.json"), ["no weights", "name a Hugging Face folder"]),
        (("notes.txt",), ["neither config.json nor a checkpoint"]),
        ((), ["empty folder"]),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, tuple) else "",
)
def test_a_folder_of_another_kind_is_told_with_the_way_from_there(
    tmp_path: Path, files: tuple[str, ...], words: list[str]
) -> None:
    found = problem(make(tmp_path / "model", *files))
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "model.nemo",
            [".nemo archive", "mkdir NEW; ln -s /", "copy config.json and the tokenizer's files into"],
        ),
        ("model.gguf", ["GGUF", "Hugging Face folder"]),
        ("model.safetensors", ["is a file; name its folder"]),
        ("config.json", ["is a file; name its folder"]),
        ("pytorch_model.bin", ["is a file; name its folder"]),
        ("model.pt", ["PyTorch's own format"]),
        ("model.zip", ["is a file; name a Hugging Face folder"]),
    ],
)
def test_a_file_is_told_with_what_to_name_instead(tmp_path: Path, name: str, words: list[str]) -> None:
    (tmp_path / name).write_text("{}")
    found = problem(str(tmp_path / name))
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-0.5B",
        "https://huggingface.co/Qwen/Qwen2.5-0.5B",
        "https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main",
        "hf://Qwen/Qwen2.5-0.5B",
    ],
)
def test_a_name_on_the_hub_is_answered_by_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problem(name)
    assert (
        "`hf download Qwen/Qwen2.5-0.5B --local-dir models/Qwen2.5-0.5B`, and name models/Qwen2.5-0.5B"
        in found
    )


def test_the_command_that_fetches_is_one_that_the_hubs_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the installed one understands it, without asking the hub for anything."""
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, *_: object, local_dir: str | None = None, **__: object) -> str:
        asked.append((repo_id, str(local_dir)))
        return ""

    cli = pytest.importorskip("huggingface_hub.cli.hf", reason="older ones have the command elsewhere")
    monkeypatch.setattr("huggingface_hub.cli.download.snapshot_download", download)
    command = problem("org/name").split("`")[1].split()
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == 0
    assert asked == [("org/name", "models/name")]


def test_a_path_that_is_not_there_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/mine", "./org/name", "/no/such", "a/b/c", "nowhere"):
        found = problem(path)
        assert "hf download" not in found
        assert str(tmp_path) in found


def test_a_tilde_that_no_shell_has_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert "write /home/me/models/x" in problem("~/models/x")


def test_a_folder_above_the_model_is_answered_by_the_models_below_it(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run",
        *("config.yaml", "final/config.json", "final/model.safetensors"),
        *("checkpoints/step_000010/huggingface/config.json", "checkpoints/step_000010/x.distcp"),
    )
    found = problem(run)
    assert f"{run}/final, {run}/checkpoints/step_000010" in found
    assert f"such as {run}/checkpoints/step_000010" in problem(f"{run}/checkpoints")
    assert f"name the checkpoint, {run}/checkpoints/step_000010" in problem(
        f"{run}/checkpoints/step_000010/huggingface"
    )
    cache = make(tmp_path / "models--org--name", "refs/main", "snapshots/0a1b/config.json", "blobs/x")
    assert f"{cache}/snapshots/0a1b" in problem(cache)


def test_of_several_iterations_the_one_is_read_that_is_noted_as_the_latest(tmp_path: Path) -> None:
    files = [f"iter_000000{n}/{name}" for n in (1, 2) for name in (".metadata", "__0_0.distcp")]
    folder = Path(make(tmp_path / "model", "config.json", *files))
    (folder / "latest_checkpointed_iteration.txt").write_text("2\n")
    assert problem_with(str(folder)) is None
    assert megatron_weights(folder) == folder / "iter_0000002"
    (folder / "latest_checkpointed_iteration.txt").write_text("3\n")
    assert "several of Megatron's checkpoints" in problem(str(folder))
