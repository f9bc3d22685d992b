"""The commands and the program of the README and its guide, run as they stand there: they work and train.

Every command in them is run: here, or where `ELSEWHERE` says. What is changed is the data, which the pages
leave to their reader, and the learning rate, which for these models of a quarter of a million parameters is
3e-4; one test of each kind leaves that, too. A server for all of them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands.train_rs import fit
from rs_aligner.config import TrainRSConfig, load_config
from tests.config.conftest import compose
from tests.e2e.launch import read_metrics, run_script
from tests.first_run.conftest import Task
from tests.first_run.readme import README, blocks, script_arguments, with_rate
from tests.first_run.trained import SMALL_MODELS_RATE, check_rates, held_out, rates_of, unmoved
from tests.ports import free_port
from tests.reward.service import service

ELSEWHERE = (
    "bash scripts/quickstart.sh",
    "rs-aligner ",
)  # test_quickstart.py, test_wheel.py, docs/test_guides.py
READMES_RATE = 1e-5


def test_no_command_is_left_unrun() -> None:
    others = [block for block in blocks("bash") if not block.startswith(ELSEWHERE)]
    assert [shlex.split(block)[1] for block in others] == ["examples/serve_reward.py", "examples/train_rs.py"]


def test_the_readmes_rate_is_the_one_that_is_tried_here() -> None:
    assert f"model.optim.lr={READMES_RATE:g}".replace("e-0", "e-") in script_arguments("train_rs.py")
    assert '"lr": 1e-5' in blocks("python")[1]


# The commands


@pytest.fixture(scope="module")
def judge_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The README's judge, served by the README's command."""
    folder, port = tmp_path_factory.mktemp("judge"), free_port()
    (folder / "my_judge.py").write_text(blocks("python")[0] + "\n")
    with service(folder, port, *script_arguments("serve_reward.py")) as server:
        server.wait_until_ready()
        yield port


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_work_with_the_files_shown_and_move_every_weight_at_their_own_rate(
    judge_port: int, stories: Task, tmp_path: Path
) -> None:
    stories.write(tmp_path, 0)
    [prompts] = blocks("json")
    for name in ("my_prompts.jsonl", "my_held_out_prompts.jsonl"):
        (tmp_path / name).write_text(prompts + "\n")
    done = run_script(
        "train_rs.py",
        *script_arguments("train_rs.py"),
        f"remote_rm.reward_model.port={judge_port}",
        timeout=200,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    run = tmp_path / "runs" / "mine"
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [0, 1]
    for shown in re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE):
        assert (run / shown).exists(), shown
    check_rates([rows[1]["lr"]], READMES_RATE)  # one step, of two rows
    assert unmoved(stories.model, run / "final") == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", ["stories", "additions"])
def test_the_commands_raise_a_held_out_score_within_ten_steps(
    task: str,
    judge_port: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine: Task = request.getfixturevalue(task)
    mine.write(tmp_path, len(mine.train))
    monkeypatch.chdir(tmp_path)
    words = with_rate(script_arguments("train_rs.py"), SMALL_MODELS_RATE)
    tree = compose("train_rs", [*words, f"remote_rm.reward_model.port={judge_port}"])
    with rates_of() as rates:
        fit(load_config(tree, TrainRSConfig))
    run = tmp_path / "runs" / "mine"
    rows = read_metrics(run)[1:]
    assert len(rows) == len(rates) == len(mine.train) / 64 <= 10
    assert all(row["rollouts/kept"] == 64 for row in rows)
    check_rates(rates, SMALL_MODELS_RATE)
    assert unmoved(mine.model, run / "final") == []
    scores = held_out(run)
    print(
        f"{task}: held-out score {scores[0]:.3f} -> {scores[-1]:.3f}, mean rate {sum(rates) / len(rates):.2e}"
    )
    assert scores[-1] >= scores[0] + 0.05


# The program


def program(prompts: str | None = None, rate: float | None = None, reward_fn: str | None = None) -> str:
    """The README's program; with other data, judge or rate where they are given."""
    [_, text] = blocks("python")
    for pattern, new in (
        (r"prompts=\[.*?\],\n(?=    model_path)", prompts),
        (r'(?<="lr": )1e-5', rate),
        (r"(?<=reward_fn=)lambda.*?\],\n", reward_fn),
    ):
        if new is not None:
            text, number = re.subn(pattern, lambda match, new=new: str(new), text, flags=re.DOTALL)
            assert number == 1, pattern
    return text


def run_program(text: str, **names: Any) -> Any:
    """Run it in this process, as a cell of a notebook; returns its `result`."""
    scope = dict(names)
    exec(compile(text, "README.md", "exec"), scope)
    return scope["result"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_program_works_as_shown_and_moves_every_weight_at_its_own_rate(
    stories: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stories.write(tmp_path, 0)
    monkeypatch.chdir(tmp_path)
    with rates_of() as rates:
        result = run_program(program())
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs/train_001/final ")
    check_rates(rates, READMES_RATE)
    assert unmoved(stories.model, result.final) == []


SUM_IS_RIGHT = "lambda p, responses, rows: [float(r == row['topic']) for r, row in zip(responses, rows)],\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("task", "reward_fn", "gain"), [("stories", None, 20.0), ("additions", SUM_IS_RIGHT, 0.05)]
)
def test_the_program_raises_a_held_out_score_within_ten_steps(
    task: str,
    reward_fn: str | None,
    gain: float,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine: Task = request.getfixturevalue(task)
    mine.write(tmp_path, 0)
    monkeypatch.chdir(tmp_path)
    text = program("prompts=mine, eval_prompts=held_out,\n", SMALL_MODELS_RATE, reward_fn)
    with rates_of() as rates:
        result = run_program(text, mine=mine.train, held_out=mine.held_out)
    assert len(rates) == len(mine.train) / 64 <= 10  # however many of them are drawn at once
    check_rates(rates, SMALL_MODELS_RATE)
    assert unmoved(mine.model, result.final) == []
    scores = held_out(result.folder)
    print(
        f"{task}: held-out score {scores[0]:.3f} -> {scores[-1]:.3f}, mean rate {sum(rates) / len(rates):.2e}"
    )
    assert scores[-1] >= scores[0] + gain
