"""Whatever a user gets wrong ends in seconds, with status 2, one clear message and no stack trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.launch import run_script
from tests.reward.rows import free_port
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    save_tiny_with_tokenizer(folder / "policy")
    (folder / "good.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    return folder


def start(folder: Path, *overrides: str) -> tuple[int, str]:
    done = run_script(
        "train_rs.py",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        f"pretrained_checkpoint.restore_from_path={folder / 'policy'}",
        f"model.data.data_prefix.train={folder / 'good.jsonl'}",
        "model.rs.length_params.max_length=8",
        *overrides,
        timeout=100,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.rs.num_rolouts_per_prompt=8", ["num_rolouts_per_prompt", "num_rollouts_per_prompt"]),
        ("model.rs.top_n_rollouts=9", ["model.rs.top_n_rollouts is 9", "num_rollouts_per_prompt = 4"]),
        ("model.global_batch_size=3 model.micro_batch_size=2", ["model.global_batch_size is 3", "multiple"]),
        ("model.data.data_prefix.train=/no/such.jsonl", ["model.data.data_prefix.train", "/no/such.jsonl"]),
        ("pretrained_checkpoint.restore_from_path=/no/folder", ["restore_from_path", "/no/folder"]),
        ("model.tensor_model_parallel_size=2", ["trainer.devices is 1", "tensor_model_parallel_size"]),
    ],
)
def test_a_config_that_cannot_run_says_which_key_and_what_would_work(
    folder: Path, override: str, words: list[str]
) -> None:
    status, output = start(folder, *override.split())
    assert status == 2, output
    assert "Traceback" not in output
    assert output.startswith("error: ")
    assert all(word in output for word in words), output
    assert len(output.strip().splitlines()) == 1, output


@pytest.mark.slow
def test_a_judge_that_cannot_be_reached_is_named_with_the_keys_to_change(folder: Path) -> None:
    port = free_port()
    overrides = ["remote_rm.startup_timeout=2", f"remote_rm.reward_model.port={port}"]
    status, output = start(folder, *overrides)
    assert status == 2, output
    assert "Traceback" not in output
    assert f"localhost:{port}" in output
    for key in ("remote_rm.reward_model.ip", "port", "remote_rm.startup_timeout", "serve_reward.py"):
        assert key in output
