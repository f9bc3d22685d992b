"""The command before a stand-in for vLLM: what goes wrong is one line, and nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.commands import serve_rollouts
from rs_aligner.config import ServeRolloutsConfig, load_config
from rs_aligner.config.serve_rollouts import LORA_RANKS
from rs_aligner.rollout_server import launch
from rs_aligner.rollout_server.failure import CPU_HEAD_SIZES, KILLED, head_size_problem, reason_of
from tests.config.leaf_rows import tree_of
from tests.ports import free_port
from tests.rollout_server.stand_in import python_with
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)
TOKEN = "a-secret-of-this-test"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_with_tokenizer(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"head_dim": 8', '"head_dim": 32'))
    return folder


def overrides(folder: Path, model: Path, **given: Any) -> dict[str, Any]:
    """The keys of a command that serves this model and keeps its log in the folder."""
    first = {"pretrained_checkpoint.restore_from_path": str(model), "inference.port": free_port()}
    return {**first, "log_dir": str(folder / "log"), "weights_root": str(folder), **given}


def config_of(folder: Path, model: Path, **given: Any) -> ServeRolloutsConfig:
    return load_config(tree_of(overrides(folder, model, **given)), ServeRolloutsConfig)


def command(folder: Path, model: Path, **given: Any) -> list[str]:
    pairs = (f"{key}={value}" for key, value in overrides(folder, model, **given).items())
    return [sys.executable, "-m", "rs_aligner", "serve-rollouts", *pairs]


def variables(fault: str, folder: Path, **more: str) -> dict[str, str]:
    python = python_with(fault, folder)
    return {**os.environ, "RS_ALIGNER_VLLM_PYTHON": str(python), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder; signals of this process stay as they are, and it has the stand-in that fails in no way."""
    monkeypatch.setattr(serve_rollouts, "_end_on_signals", lambda: None)
    monkeypatch.setenv("RS_ALIGNER_VLLM_PYTHON", str(python_with("none", tmp_path)))
    return tmp_path


def of(folder: Path) -> list[psutil.Process]:
    """Processes that run in that folder."""

    def runs_there(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if runs_there(process)]


@pytest.mark.parametrize(
    ("fault", "given", "kind", "told"),
    [
        ("dies", {}, ValueError, "vLLM cannot serve {model}: no such layer (its log: {folder}/log/vllm.log)"),
        (
            "bad switch",
            {},
            ValueError,
            "vLLM cannot serve {model}: unrecognized arguments: --nonsense (its log",
        ),
        ("cannot compute", {}, ValueError, "vLLM cannot serve {model}: heads of 8 (its log: {folder}/log/"),
        (
            "never ready",
            {"startup_timeout": 0.5},
            ValueError,
            "was not ready in startup_timeout=0.5 s; its log",
        ),
        ("engine dies", {}, RuntimeError, "serves no more: its engine is dead: out of pages (its log: "),
        ("ends", {}, RuntimeError, "serves no more: it ended: killed (its log: {folder}/log/vllm.log)"),
    ],
)
def test_a_server_that_fails_says_why(fault, given, kind, told, here, model, monkeypatch) -> None:
    monkeypatch.setattr(launch, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(launch, "HEALTH_SECONDS", 0.1)
    python_with(fault, here)
    with pytest.raises(kind) as error:
        serve_rollouts.serve(config_of(here, model, **given))
    assert told.format(model=model, folder=here) in str(error.value)
    assert "\n" not in str(error.value)
    assert of(here) == []


def test_why_is_one_line_and_a_status(tmp_path: Path, model: Path) -> None:
    done = subprocess.run(
        command(tmp_path, model),
        env=variables("dies", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr == f"error: vLLM cannot serve {model}: no such layer (its log: {tmp_path}/log/vllm.log)\n"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inference.host": "0.0.0.0"}, "inference.host is 0.0.0.0: other machines can reach it, so set"),
        ({"inference.token_file": "none"}, 'inference.token_file is "none": there is no such file'),
        ({"weights_root": "none"}, 'weights_root is "none": there is no such folder'),
        ({"pretrained_checkpoint.restore_from_path": "none"}, 'restore_from_path is "none": '),
        ({"lora_rank": 513}, "lora_rank is 513: vLLM takes adapters up to 512; leave it out, and whole"),
        ({"vllm.arguments": ["--api-key=x"]}, "--api-key is set by inference.token_file"),
        ({"vllm.arguments": ["--root_path", "/x"]}, "--root-path may not be given: the guard relies on it"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(given, told, here, model) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        serve_rollouts.serve(config_of(here, model, **given))
    assert not (here / "log").exists()


def test_a_port_that_is_taken_is_named(here: Path, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot serve at 127.0.0.1:{port}: Address already in use"):
            serve_rollouts.serve(config_of(here, model, **{"inference.port": port}))


def test_without_an_environment_the_script_is_named(here: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setenv("RS_ALIGNER_VLLM_PYTHON", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here))
    with pytest.raises(ValueError, match=r"bash scripts/setup_vllm\.sh of a source checkout makes it"):
        serve_rollouts.serve(config_of(here, model))


def test_a_model_that_the_kernels_cannot_run_is_told_at_once(here: Path, test_data: Path) -> None:
    with pytest.raises(ValueError, match="has heads of 8, and vLLM on a CPU runs those of 32, 64, "):
        serve_rollouts.serve(config_of(here, test_data / "stories260k"))


@pytest.fixture(params=["none", pytest.param("stays", marks=pytest.mark.slow)])
def serving(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that serves, with a token; "stays" is a vLLM that heeds no SIGTERM."""
    process = subprocess.Popen(
        command(tmp_path, model),
        env=variables(request.param, tmp_path, RS_ALIGNER_ROLLOUTS_TOKEN=TOKEN),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for left in of(tmp_path):
            left.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_and_its_vllm(number: int, serving: Any, tmp_path: Path) -> None:
    assert serving.stdout is not None
    lines = [serving.stdout.readline() for _ in range(3)]
    assert "rollouts ready at http://127.0.0.1:" in lines[1]
    assert "with a token" in lines[1]
    assert f"new weights may come from below {tmp_path}" in lines[2]
    assert (tmp_path / "log" / "vllm.log").read_text() == "starting, with a token\n"
    assert len(of(tmp_path)) == 2
    assert all(TOKEN not in " ".join(process.cmdline()) for process in of(tmp_path))
    serving.send_signal(number)
    assert serving.wait(timeout=40) == 0
    assert of(tmp_path) == []


@pytest.mark.parametrize("fault", ["none", "stays"])
def test_a_server_that_is_killed_takes_its_vllm_with_it(fault: str, tmp_path: Path, model: Path) -> None:
    """One that stays despite SIGTERM, too, as a real one does that has requests under way."""
    process = subprocess.Popen(
        command(tmp_path, model),
        env=variables(fault, tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "starts with" in process.stdout.readline()
    assert "rollouts ready" in process.stdout.readline()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("INFO all is well\n", ""),
        ("x.py: error: argument --port: expected one argument", "argument --port: expected one argument"),
        ("ValueError: first\nKeyError: 'second'\n", "'second'"),
        ("(Worker pid=1) ERROR 11-27 03:52:58 [a.py:1] torch.OutOfMemoryError: no room", "no room"),
        ("RuntimeError: root\nvllm.v1.E.EngineDeadError: EngineCore encountered an issue.", "root"),
        ("ValueError: no LoRA\nException: WorkerProc initialization failed due to an exception", "no LoRA"),
        ("RuntimeError: root\nRuntimeError: Engine core initialization failed. See above", "root"),
        ("v.VLLMValidationError: token 512\nv.EngineDeadError: EngineCore encountered an issue.", KILLED),
        ("RuntimeError: root\nv.VLLMValidationError: token 512\n", "root"),
        ("x.ValidationError: 1 validation error for ModelConfig\n  Value error, no folder\n", "no folder"),
        (f"ValueError: {'long' * 100}", ("long" * 100)[:300]),
    ],
)
def test_the_reason_is_the_last_error_that_no_other_made(log: str, reason: str) -> None:
    assert reason_of(log) == reason


@pytest.mark.parametrize(
    ("made", "size"),
    [
        ({"hidden_size": 64, "num_attention_heads": 8}, 8),
        ({"hidden_size": 64, "num_attention_heads": 2}, None),
        ({"hidden_size": 64, "num_attention_heads": 8, "head_dim": 128}, None),
        ({"hidden_size": 64, "num_attention_heads": 2, "head_dim": 24}, 24),
        ({"n_embd": 64, "n_head": 4}, 16),  # GPT-2's names
        ({"n_embd": 64, "n_head": 2}, None),
        ({}, None),
    ],
)
def test_heads_that_the_kernels_do_not_have_are_told(made: dict[str, int], size: int | None) -> None:
    told = head_size_problem(made)
    assert (told is None) == (size is None)
    assert size is None or f"has heads of {size}" in str(told)


def source_of(vllm_python: Path, module: str) -> str:
    [source] = vllm_python.parents[1].glob(f"lib/python*/site-packages/vllm/{module}")
    return source.read_text()


def test_the_sizes_of_heads_and_adapters_are_those_of_vllm(vllm_python: Path) -> None:
    heads = source_of(vllm_python, "v1/attention/backends/cpu_attn.py")
    assert f"return {list(CPU_HEAD_SIZES)}" in heads
    assert f"MaxLoRARanks = Literal{list(LORA_RANKS)}" in source_of(vllm_python, "config/lora.py")


def longrope(folder: Path, **rope: Any) -> Path:
    (folder / "phi").mkdir()
    made = {"model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}}
    (folder / "phi" / "config.json").write_text(json.dumps({**made, **rope}))
    (folder / "phi" / "model.safetensors").touch()
    return folder / "phi"


@pytest.mark.parametrize(("asked", "given"), [(None, 4096), (1024, 1024), (4096, 4096)])
def test_longrope_is_served_up_to_the_length_before_it(asked: int | None, given: int, here: Path) -> None:
    """Beyond it vLLM would take other frequencies for each text, by which other tokens come."""
    config = config_of(
        here, longrope(here, original_max_position_embeddings=4096), **{"vllm.max_length": asked}
    )
    switches = launch.command_of(config, Path("python"), "cpu", "::1")
    assert switches[switches.index("--max-model-len") + 1] == str(given)


@pytest.mark.parametrize(("asked", "lines"), [(None, 1), (1024, 0), (4096, 0)])
def test_a_length_that_was_not_asked_for_is_told_in_one_line(asked, lines, here, caplog) -> None:
    folder = longrope(here, original_max_position_embeddings=4096, head_dim=32)
    serve_rollouts.prepare(config_of(here, folder, **{"vllm.max_length": asked}))
    assert [one.getMessage().startswith("vllm.max_length is 4096,") for one in caplog.records] == [
        True
    ] * lines


def test_sequences_beyond_the_length_before_longrope_are_refused_before_anything_is_started(
    here: Path,
) -> None:
    folder = longrope(here, original_max_position_embeddings=4096)
    with pytest.raises(ValueError, match=r"vllm\.max_length is 4097: of this model at most 4096"):
        serve_rollouts.prepare(config_of(here, folder, **{"vllm.max_length": 4097}))


def test_other_models_are_served_as_long_as_they_say(here: Path, model: Path) -> None:
    plain = longrope(here, rope_scaling={"type": "yarn", "original_max_position_embeddings": 4096})
    for folder in (model, plain):
        assert launch.max_length_of(config_of(here, folder)) is None
        assert launch.max_length_of(config_of(here, folder, **{"vllm.max_length": 8192})) == 8192


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 8), (8, 8), (10, 16), (321, 512), (512, 512)])
def test_adapters_of_any_rank_get_room_for_the_next_one_that_vllm_knows(
    asked: int, given: int, here: Path, model: Path
) -> None:
    switches = launch.command_of(config_of(here, model, lora_rank=asked), Path("python"), "cpu", "::1")
    assert switches[switches.index("--max-lora-rank") + 1] == str(given)
    assert "--enable-lora" in switches
    assert "--max-lora-rank" not in launch.command_of(config_of(here, model), Path("python"), "cpu", "::1")
