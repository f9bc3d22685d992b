"""Every command in the README is run: here, by `test_quickstart.py`, or by CI (`bash scripts/test.sh`)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.launch import ROOT, read_metrics, run_script
from tests.reward.rows import free_port
from tests.reward.service import service
from tests.tiny import save_tiny_with_tokenizer

README = (ROOT / "README.md").read_text()
ELSEWHERE = {"bash scripts/quickstart.sh"}


def blocks(language: str) -> list[str]:
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def script_arguments(script: str) -> list[str]:
    """The arguments of the README's one command that runs this script."""
    [command] = [block for block in blocks("bash") if script in block]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == [".venv/bin/python", f"examples/{script}"]
    return words[2:]


def test_no_command_is_left_unrun() -> None:
    others = [block for block in blocks("bash") if block not in ELSEWHERE]
    assert [shlex.split(block)[1] for block in others] == ["examples/serve_reward.py", "examples/train_rs.py"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_work_with_the_files_shown(tmp_path: Path) -> None:
    [prompts], [judge, _] = blocks("json"), blocks("python")
    (tmp_path / "my_prompts.jsonl").write_text(prompts + "\n")
    (tmp_path / "my_held_out_prompts.jsonl").write_text(prompts + "\n")
    (tmp_path / "my_judge.py").write_text(judge + "\n")
    save_tiny_with_tokenizer(tmp_path / "path" / "to" / "model")
    port = free_port()
    with service(tmp_path, port, *script_arguments("serve_reward.py")) as server:
        server.wait_until_ready()
        done = run_script(
            "train_rs.py",
            *script_arguments("train_rs.py"),
            f"remote_rm.reward_model.port={port}",
            "model.rs.length_params.max_length=4",
            timeout=200,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout
    run = tmp_path / "runs" / "mine"
    assert [row["step"] for row in read_metrics(run)] == [0, 1]
    for shown in re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE):
        assert (run / shown).exists(), shown


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_program_works(tmp_path: Path) -> None:
    save_tiny_with_tokenizer(tmp_path / "path" / "to" / "model")
    [_, program] = blocks("python")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program.replace("config={", 'config={"model.rs.length_params.max_length": 4, '),
        ],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("runs/train_001/final ")
