"""What can be checked without the judge is checked before it is waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands.generate import write_answers
from rs_aligner.commands.train_rs import fit
from rs_aligner.config import GenerateConfig, TrainRSConfig, load_config
from rs_aligner.reward.client import RemoteGPTRMClient
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was waited for; nobody serves a judge."""
    seen: list[str] = []

    def wait(client: RemoteGPTRMClient) -> None:
        seen.append("judge")
        raise ConnectionError("no judge")

    monkeypatch.setattr(RemoteGPTRMClient, "wait_until_ready", wait)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_with_tokenizer(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"text": "one"}\n')
    return tmp_path


def train(folder: Path) -> None:
    tree: dict[str, Any] = {
        "trainer": {"accelerator": "cpu"},
        "exp_manager": {"explicit_log_dir": str(folder / "run")},
        "pretrained_checkpoint": {"restore_from_path": str(folder / "policy")},
        "model": {
            "data": {"data_prefix": {"train": str(folder / "prompts.jsonl")}},
            "rs": {"length_params": {"max_length": 8}},
        },
    }
    fit(load_config(tree, TrainRSConfig))


def generate(folder: Path) -> None:
    tree: dict[str, Any] = {
        "trainer": {"accelerator": "cpu"},
        "output": str(folder / "answers.jsonl"),
        "pretrained_checkpoint": {"restore_from_path": str(folder / "policy")},
        "remote_rm": {"reward_model": {"port": 1}},
        "model": {
            "data": {"files": str(folder / "prompts.jsonl")},
            "answers": {"length_params": {"max_length": 8}},
        },
    }
    write_answers(load_config(tree, GenerateConfig))


@pytest.mark.parametrize("start", [train, generate])
def test_a_model_or_data_that_cannot_be_used_is_told_of_before_the_judge_is_waited_for(
    start: Any, folder: Path, waited: list[str]
) -> None:
    rows, weights = folder / "prompts.jsonl", folder / "policy" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        start(folder)
    weights.write_bytes(content)
    rows.write_text('{"no text": 1}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1"):
        start(folder)
    assert waited == []
    rows.write_text('{"text": "one"}\n')
    with pytest.raises(ConnectionError, match="no judge"):
        start(folder)
    assert waited == ["judge"]
