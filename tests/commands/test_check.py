"""`rs-aligner check` from end to end: what is right passes and leaves nothing, what is wrong is named."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.cli.main import main
from rs_aligner.record.format import RunRecord
from tests.ports import free_port
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROW = {"text": "one", "prompt": "one", "response": "two", "chosen": "three", "rejected": "four"}
MODEL = "pretrained_checkpoint.restore_from_path=policy"
JUDGE = ("remote_rm.in_process=true", "remote_rm.judge.function=judge.py:score")
LENGTH = "model.rs.length_params.max_length=8"
TRAIN = (MODEL, "exp_manager.explicit_log_dir=runs/new", "model.data.data_prefix.train=rows.jsonl")
COMMANDS = {
    "train": (*TRAIN, *JUDGE, LENGTH),
    "sft": (
        *TRAIN,
        "model.data.data_prefix.validation=rows.jsonl",
        "judge.function=judge.py:score",
        "model.sft.length_params.max_length=8",
    ),
    "reward-model": TRAIN,
    "generate": (
        MODEL,
        "model.data.files=rows.jsonl",
        "output=out/answers.jsonl",
        *JUDGE,
        "model.answers.length_params.max_length=8",
    ),
    "serve": ("judge.function=judge.py:score",),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("model") / "policy")


@pytest.fixture
def place(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a user brings, in the working folder; bytecode is written as it is for users."""
    shutil.copytree(policy, tmp_path / "policy")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "judge.py").write_text(
        "def score(prompts, responses, metadata):\n    return [1.0] * len(prompts)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_right_passes_line_by_line_and_nothing_is_left(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(place)
    given = COMMANDS[command]
    if command == "serve":
        given = (*given, f"inference.port={free_port()}")
    assert main(["check", command, *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all is right that can be checked before a model is loaded"
    told = "\n".join(line for line in lines if line.startswith("ok  "))
    parts = {
        "train": (
            "the config",
            "runs/new",
            "the model: policy",
            "1 prompts",
            "disk",
            "memory",
            "judge answers",
        ),
        "sft": (
            "the config",
            "runs/new",
            "1 rows, 1 held out",
            "disk",
            "memory",
            "the judge: judge.py:score",
        ),
        "reward-model": ("the config", "runs/new", "1 pairs", "disk", "memory", "a new one"),
        "generate": ("the config", "out/answers.jsonl", "1 prompts", "judge answers"),
        "serve": ("the config", "the address is free", "the judge: judge.py:score"),
    }[command]
    for part in parts:
        assert part in told
    assert everything(place) == before


def truncate(file: str) -> None:
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])


def earlier_run() -> None:
    """A folder with work of a start, which may not be gone on with."""
    (Path("runs/new") / "checkpoints" / "step_00000001").mkdir(parents=True)
    RunRecord("train_rs").write(Path("runs/new"))


@pytest.mark.parametrize(
    ("command", "wrong", "do", "said"),
    [
        (
            "train",
            ["model.optim.lrr=1"],
            None,
            "model.optim.lrr is not a key; the nearest one is model.optim.lr",
        ),
        (
            "train",
            ["exp_manager.explicit_log_dir=/proc/run"],
            None,
            "explicit_log_dir=/proc cannot be written",
        ),
        ("train", ["pretrained_checkpoint.restore_from_path=nowhere"], None, "restore_from_path is"),
        ("train", [], lambda: truncate("policy/model.safetensors"), "model.safetensors"),
        ("train", [], lambda: Path("policy/tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        ("train", ["model.data.data_prefix.train=no.jsonl"], None, "data_prefix.train is "),
        ("train", [], lambda: Path("rows.jsonl").write_text('{"text": 1}\n'), "rows.jsonl:1"),
        (
            "train",
            ["model.data.prompt_template='{question}'"],
            None,
            "model.data.prompt_template names 'question'",
        ),
        (
            "train",
            ["remote_rm.in_process=false", "remote_rm.judge=null", "remote_rm.startup_timeout=0.2"],
            None,
            "no judge is ready",
        ),
        ("train", [], lambda: Path("judge.py").write_text("1 / 0\n"), "ZeroDivisionError"),
        ("train", ["remote_rm.judge.function=judge.py:scor"], None, "has no 'scor'"),
        ("train", ["model.rs.selection=[{name: function, function: 'judge.py:no'}]"], None, "has no 'no'"),
        ("train", ["exp_manager.resume_if_exists=false"], earlier_run, "has work of an earlier start"),
        (
            "sft",
            [],
            lambda: Path("rows.jsonl").write_text('{"text": "a", "prompt": "a"}\n'),
            "rows.jsonl:1: has no 'response'",
        ),
        ("reward-model", [], lambda: Path("rows.jsonl").write_text('{"prompt": "a"}\n'), "has no 'chosen'"),
        ("generate", ["output=/proc/answers.jsonl"], None, "output=/proc cannot be written"),
        ("serve", ["judge.name=hugging"], None, "judge.name is"),
        ("serve", ["inference.host=0.0.0.0"], None, "other machines can reach it"),
    ],
    ids=[
        *("a key", "the folder", "no model", "cut weights", "a cut tokenizer", "no file", "a row"),
        *(
            "a template",
            "no server",
            "a judge that fails",
            "a judge's name",
            "a selector",
            "a run",
            "no answer",
        ),
        *("no pair", "the output", "no such judge", "an open address"),
    ],
)
def test_what_is_wrong_is_named_and_ends_with_its_status(
    command: str, wrong: list[str], do: Any, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if do is not None:
        do()
    before = everything(place)
    with pytest.raises(SystemExit) as ended:
        main(["check", command, *COMMANDS[command], *wrong])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "all is right" not in told.out
    assert everything(place) == before


def test_a_port_that_is_taken_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["check", "serve", *COMMANDS["serve"], f"inference.port={port}"])
    assert ended.value.code == 2
    assert f"cannot serve at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("disk", "no space left on device: 1.02 MB are free"),
        ("memory", "the model does not fit: a rank needs"),
    ],
)
def test_too_little_room_is_told_with_both_numbers(
    lacking: str,
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if lacking == "disk":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 0, 1_020_000))
    else:
        memory = namedtuple("memory", "total")
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1000))
    with pytest.raises(SystemExit) as ended:
        main(["check", "train", *COMMANDS["train"], "trainer.accelerator=cpu"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "the data: 1 prompts" in told.out
