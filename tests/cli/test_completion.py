"""Tab completion: what may come next, and that bash takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rs_aligner.cli.completion import BASH, candidates
from rs_aligner.cli.table import COMMANDS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rs-aligner rew", ["reward-model"]),
        ("rs-aligner plan tr", ["train"]),
        ("rs-aligner plan ser", []),
        ("rs-aligner train --config-n", ["--config-name"]),
        ("rs-aligner train --config-name recipes/ra", ["recipes/raft"]),
        ("rs-aligner train model.opt", ["model.optim."]),
        ("rs-aligner plan train ++model.optim.l", ["++model.optim.lr="]),
        ("rs-aligner sft trainer.accelerator=", ["auto", "cpu", "gpu"]),
        ("rs-aligner train remote_rm.in_process=t", ["true"]),
        ("rs-aligner generate model.answers.choose=m", ["majority"]),
        ("rs-aligner train exp_manager.name=", []),
    ],
)
def test_what_may_come_next(line: str, found: list[str]) -> None:
    assert candidates(line) == found


def test_every_command_is_offered_and_a_users_configs_are(tmp_path: Path) -> None:
    assert candidates("rs-aligner ") == sorted(command.name for command in COMMANDS)
    (tmp_path / "mine.yaml").write_text("")
    assert candidates(f"rs-aligner train -cd {tmp_path} -cn mi") == ["mine"]


def test_bash_completes_a_value_behind_its_break_of_words(tmp_path: Path) -> None:
    program = tmp_path / "rs-aligner"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rs_aligner "$@"\n')
    program.chmod(0o755)
    script = f"""{BASH}
    COMP_LINE="rs-aligner train remote_rm.on_failure=ab" COMP_POINT=${{#COMP_LINE}}
    COMP_LINE="rs-aligner train remote_rm.on_failure=ab"; COMP_POINT=${{#COMP_LINE}}
    COMP_WORDS=(rs-aligner train remote_rm.on_failure = ab) COMP_CWORD=4
    compopt() {{ :; }}
    _rs_aligner; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "abort\n"
