"""What can be checked without the judge and the other ranks is checked before they are waited for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands import train_reward_model, train_rs, train_sft
from rs_aligner.commands.generate import write_answers
from rs_aligner.config import (
    GenerateConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.reward.client import RemoteGPTRMClient
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was waited for; nobody serves a judge, and no other rank comes."""
    seen: list[str] = []

    def wait(client: RemoteGPTRMClient) -> None:
        seen.append("judge")
        raise ConnectionError("nobody is there")

    def start(**_: Any) -> None:
        seen.append("ranks")
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(RemoteGPTRMClient, "wait_until_ready", wait)
    monkeypatch.setattr("rs_aligner.model.runtime.start", start)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_with_tokenizer(tmp_path / "policy")
    return tmp_path


def tree(folder: Path, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "trainer": {"accelerator": "cpu"},
        "exp_manager": {"explicit_log_dir": str(folder / "run")},
        "pretrained_checkpoint": {"restore_from_path": str(folder / "policy")},
        "model": {"data": {"data_prefix": {"train": str(folder / "rows.jsonl")}}},
    }
    for key, value in more.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base


def rs(folder: Path, **more: Any) -> None:
    config = tree(folder, **more)
    config["model"]["rs"] = {"length_params": {"max_length": 8}}
    train_rs.fit(load_config(config, TrainRSConfig))


def sft(folder: Path) -> None:
    train_sft.fit(load_config(tree(folder), TrainSFTConfig))


def reward_model(folder: Path) -> None:
    train_reward_model.fit(load_config(tree(folder), TrainRewardModelConfig))


def generate(folder: Path, **more: Any) -> None:
    config = tree(
        folder,
        output=str(folder / "answers.jsonl"),
        remote_rm=more.get("remote_rm", {"reward_model": {"port": 1}}),
        model={
            "data": {"files": str(folder / "rows.jsonl")},
            "answers": {"length_params": {"max_length": 8}},
        },
    )
    del config["exp_manager"]
    write_answers(load_config(config, GenerateConfig))


@pytest.mark.parametrize(
    ("start", "waits_for"), [(rs, "judge"), (generate, "judge"), (sft, "ranks"), (reward_model, "ranks")]
)
def test_a_model_or_data_that_cannot_be_used_is_told_of_before_anything_is_waited_for(
    start: Any, waits_for: str, folder: Path, waited: list[str]
) -> None:
    rows, weights = folder / "rows.jsonl", folder / "policy" / "model.safetensors"
    row = {"text": "one", "prompt": "one", "response": "two", "chosen": "three", "rejected": "four"}
    rows.write_text(json.dumps(row) + "\n")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        start(folder)
    weights.write_bytes(content)
    rows.write_text('{"no text": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1"):
        start(folder)
    assert waited == []
    rows.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConnectionError, match="nobody is there"):
        start(folder)
    assert waited == [waits_for]


@pytest.mark.parametrize("start", [rs, generate])
@pytest.mark.parametrize(
    ("judge", "says"),
    [({"reward_model": {"port": 1}}, True), ({"in_process": True, "judge": {"name": "exact_answer"}}, False)],
)
@pytest.mark.usefixtures("waited")
def test_only_a_judge_of_another_process_is_said_to_be_waited_for(
    start: Any, judge: dict[str, Any], says: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "rows.jsonl").write_text('{"text": "one", "prompt": "one", "response": "two"}\n')
    caplog.set_level("INFO", "rs_aligner")
    with pytest.raises(ConnectionError, match="nobody is there"):
        start(folder, remote_rm=judge)
    assert ("waiting for the judge" in caplog.messages) == says
