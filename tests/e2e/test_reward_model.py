"""From pairs to a better policy: a reward model is trained, served, and made use of by rejection sampling.

The labeller of the pairs (the sentiment judge) has no part in the training of the policy; it only says, on
held-out openings, whether its taste was learnt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import read_metrics, run_script
from tests.e2e.story_pairs import mean_label, write_pairs
from tests.ports import free_port
from tests.reward.service import service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEED = 1


@pytest.fixture(scope="module")
def reward_model(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder of a reward model, made of stories260k and labelled pairs of its own stories."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(test_data, folder, samples=8, per_prompt=8, seed=SEED)
    done = run_script(
        "train_reward_model.py",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={test_data / 'stories260k'}",
        f"model.data.data_prefix={{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}",
        *("trainer.rm.max_steps=100", "trainer.rm.max_epochs=2", "trainer.rm.val_check_interval=100"),
        *("model.micro_batch_size=16", "model.global_batch_size=32", "model.optim.lr=1e-3"),
        *(f"model.seed={SEED}", "trainer.threads=1"),
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    return folder / "run"


@pytest.fixture(scope="module")
def run(
    reward_model: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float, float]:
    """A run of `conf/stories.yaml` judged by the reward model; the labeller's score before and after it."""
    folder, port = tmp_path_factory.mktemp("rs"), free_port()
    kwargs = f"judge.kwargs={{folder: {reward_model / 'final'}, threads: 1}}"
    with service(folder, port, "judge.name=megatron_reward_model", kwargs) as judge:
        judge.wait_until_ready(timeout=240)
        done = run_script(
            "train_rs.py",
            "--config-name=stories",
            f"exp_manager.explicit_log_dir={folder / 'run'}",
            "exp_manager.create_tensorboard_logger=false",
            f"remote_rm.reward_model.port={port}",
            *(f"model.seed={SEED}", "trainer.threads=1"),
            timeout=300,
            RS_ALIGNER_TEST_DATA=str(test_data),
        )
    assert done.returncode == 0, done.stdout
    before, after = (
        mean_label(test_data, policy, samples=4, seed=SEED + 100)
        for policy in (test_data / "stories260k", folder / "run" / "final")
    )
    return folder / "run", before, after


def test_at_least_80_percent_of_clear_held_out_pairs_are_ordered_right(reward_model: Path) -> None:
    first, *_, last = read_metrics(reward_model)
    before, after = first["validation/accuracy"], last["validation/accuracy"]
    print(f"held-out pairs ordered right: {before:.3f} -> {after:.3f}")
    assert 0.3 < before < 0.7
    assert last["step"] == 100
    assert after >= 0.80


def test_two_steps_judged_by_the_reward_model_raise_the_labellers_held_out_score(
    run: tuple[Path, float, float],
) -> None:
    folder, before, after = run
    rows: list[dict[str, Any]] = read_metrics(folder)
    print(f"labeller's held-out score: {before:.3f} -> {after:.3f}")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["rollouts/failed"] == 0 for row in rows[1:])
    assert rows[2]["validation/reward"] > rows[0]["validation/reward"]
    assert after - before >= 0.20
