"""Every recipe at its own defaults: a model, additions and a judge are named, and nothing else but the rate.

A step has as many prompts as the file where the recipe would take more. What each recipe does with them is in
tests/e2e/test_recipes.py; here it has to train.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rs_aligner.commands.train_rs import fit
from rs_aligner.config import TrainRSConfig, load_config
from tests.config.conftest import CONF, compose
from tests.e2e.launch import read_metrics
from tests.first_run.conftest import Task
from tests.first_run.trained import SMALL_MODELS_RATE, check_rates, held_out, rates_of, unmoved

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Prompts in the file: enough for about ten optimizer steps.
TRAIN = {
    "expert_iteration": 128,
    "grpo_like": 48,
    "raft": 192,
    "rest_em": 64,
    "rft_verifiable": 128,
    "star": 128,
    "trlx_rft": 128,
}
ELSEWHERE = {"nemo_rs", "offline_best_of_n"}

Start = Callable[..., tuple[Path, list[float]]]


@pytest.fixture
def start(additions: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Runs a recipe with its data and judge; returns the run's folder and every optimizer step's rate."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(recipe: str, num_prompts: int, *overrides: str) -> tuple[Path, list[float]]:
        folder = tmp_path / recipe
        folder.mkdir()
        additions.write(folder, num_prompts)
        train = [f"model.data.data_prefix.train={folder / 'my_prompts.jsonl'}"] if num_prompts else []
        words = [
            f"pretrained_checkpoint.restore_from_path={folder / 'path' / 'to' / 'model'}",
            *train,
            f"model.data.data_prefix.validation={folder / 'my_held_out_prompts.jsonl'}",
            f"exp_manager.explicit_log_dir={folder / 'run'}",
            *("remote_rm.in_process=true", "remote_rm.judge.name=exact_answer"),
            *overrides,
        ]
        with rates_of() as rates:
            fit(load_config(compose(f"recipes/{recipe}", words), TrainRSConfig))
        torch.set_num_threads(threads)
        return folder / "run", rates

    return run


def test_every_recipe_is_tried() -> None:
    assert set(TRAIN) | ELSEWHERE == {path.stem for path in (CONF / "recipes").glob("*.yaml")}


def check(name: str, model: Path, run: Path, rates: list[float]) -> None:
    check_rates(rates, SMALL_MODELS_RATE)
    assert unmoved(model, run / "final") == []
    scores = held_out(run)
    print(f"{name}: held-out score {scores[0]:.3f} -> {scores[-1]:.3f} in {len(rates)} optimizer steps")
    assert scores[-1] > scores[0]


@pytest.mark.parametrize("recipe", TRAIN)
def test_a_recipe_trains_at_its_own_defaults(recipe: str, start: Start, additions: Task) -> None:
    run, rates = start(recipe, TRAIN[recipe], f"model.optim.lr={SMALL_MODELS_RATE}")
    check(recipe, additions.model, run, rates)
    if recipe == "raft":  # what it sampled and scored is what the recipe without sampling learns from
        ledger = shutil.copytree(run / "rollouts", run.parent / "earlier")
        run, rates = start(
            "offline_best_of_n", 0, f"model.rs.offline={ledger}", f"model.optim.lr={SMALL_MODELS_RATE}"
        )
        check("offline_best_of_n", additions.model, run, rates)


def test_nemo_aligners_own_numbers_move_the_weights_and_are_warned_of(
    start: Start, additions: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rates = start("nemo_rs", 128)
    assert rates[0] == 0  # as there: the first step of a warm-up of ten
    assert max(rates) > 0
    assert unmoved(additions.model, run / "final") == []
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert any("model.optim.sched" in line for line in warnings), warnings
    assert len(read_metrics(run)) == 2
