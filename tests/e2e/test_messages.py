"""Whatever a user gets wrong ends in seconds, with status 2, one clear message and no stack trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.launch import run_forked, run_script
from tests.ports import free_port
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    save_tiny_with_tokenizer(folder / "policy")
    (folder / "good.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    return folder


def arguments(folder: Path, *overrides: str) -> list[str]:
    return [
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        f"pretrained_checkpoint.restore_from_path={folder / 'policy'}",
        f"model.data.data_prefix.train={folder / 'good.jsonl'}",
        "model.rs.length_params.max_length=8",
        *overrides,
    ]


WRONG = {
    "model.rs.num_rolouts_per_prompt=8": ["num_rolouts_per_prompt", "num_rollouts_per_prompt"],
    "model.rs.top_n_rollouts=9": ["model.rs.top_n_rollouts is 9", "num_rollouts_per_prompt = 4"],
    "model.global_batch_size=3 model.micro_batch_size=2": ["model.global_batch_size is 3", "multiple"],
    "model.data.data_prefix.train=/no/such.jsonl": ["model.data.data_prefix.train", "/no/such.jsonl"],
    "pretrained_checkpoint.restore_from_path=/no/folder": ["restore_from_path", "/no/folder"],
    "model.tensor_model_parallel_size=2": ["trainer.devices is 1", "tensor_model_parallel_size"],
}


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, tuple[int, str]]:
    """How a start with each of them ends, and what it says."""
    starts = [arguments(folder, *override.split()) for override in WRONG]
    return dict(zip(WRONG, run_forked("train_rs.py", starts, timeout=100), strict=True))


@pytest.mark.parametrize("override", WRONG)
def test_a_config_that_cannot_run_says_which_key_and_what_would_work(
    said: dict[str, tuple[int, str]], override: str
) -> None:
    status, output = said[override]
    assert status == 2, output
    assert "Traceback" not in output
    assert output.startswith("error: ")
    assert all(word in output for word in WRONG[override]), output
    assert len(output.strip().splitlines()) == 1, output


@pytest.mark.slow
def test_a_judge_that_cannot_be_reached_is_named_with_the_keys_to_change(folder: Path) -> None:
    port = free_port()
    overrides = ["remote_rm.startup_timeout=2", f"remote_rm.reward_model.port={port}"]
    done = run_script("train_rs.py", *arguments(folder, *overrides), timeout=100)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert f"localhost:{port}" in done.stdout
    for key in ("remote_rm.reward_model.ip", "port", "remote_rm.startup_timeout", "rs-aligner serve"):
        assert key in done.stdout
