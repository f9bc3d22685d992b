"""The plan tells the run's numbers before the run."""

from __future__ import annotations

import pytest

from rs_aligner.config import TrainRSConfig, load_config, num_steps, plan

pytestmark = pytest.mark.timeout(60)


def rows(text: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in text.replace("   ", "  ").splitlines())


@pytest.fixture
def config(tree):
    return load_config(
        tree(
            **{
                "trainer.devices": 8,
                "trainer.rs.max_epochs": 3,
                "model.tensor_model_parallel_size": 2,
                "model.micro_batch_size": 2,
                "model.rs.num_rollout_samples": 500,
                "model.rs.num_rollouts_per_prompt": 8,
                "model.rs.top_n_rollouts": 2,
                "model.rs.num_val_samples": 100,
                "model.rs.num_val_rollouts_per_prompt": 4,
            }
        ),
        TrainRSConfig,
    )


def test_the_numbers_of_a_step_and_of_the_run(config):
    text = plan(config, num_prompts=1200, num_val_prompts=128)
    facts = {name: value.strip() for name, value in rows(text).items()}
    assert facts["layout"] == "8 ranks = 4 data x 2 tensor x 1 pipeline"
    assert facts["prompts a step"] == "500, decoded 125 at a time on each data-parallel rank"
    assert facts["rollouts a step"] == "4,000 (8 a prompt)"
    assert facts["kept a step"] == "at most 1,000 (2 a prompt)"
    assert facts["optimizer steps a step"] == "at most 16, of 64 rows"
    assert facts["micro-batches"] == "8 a rank and optimizer step, of 2 rows"
    assert facts["steps in the run"] == "9 (3 epochs, 3 steps for 1,200 prompts)"
    assert facts["validation"].startswith("100 prompts, 400 rollouts; before the first step, every 10")


def test_steps_are_those_of_all_epochs_or_fewer(tree):
    def steps(max_steps: int, num_prompts: int) -> int:
        changes = {"trainer.rs.max_epochs": 2, "trainer.rs.max_steps": max_steps}
        return num_steps(load_config(tree(**changes), TrainRSConfig), num_prompts)

    assert steps(-1, 512) == 2
    assert steps(-1, 513) == 4
    assert steps(3, 513) == 3
    assert steps(9, 513) == 4


def test_a_short_file_makes_small_steps_and_unread_files_leave_the_length_open(config):
    assert "\nrollouts a step         80 (8 a prompt)\n" in plan(config, num_prompts=10)
    assert plan(config).splitlines()[-2].split("  ")[-1].strip() == "3 epochs of the prompts"


def test_a_run_without_validation_says_why(tree):
    no_files = load_config(tree(**{"model.data.data_prefix.validation": []}), TrainRSConfig)
    assert "none (model.data.data_prefix.validation is empty)" in plan(no_files)
    never = load_config(tree(**{"trainer.rs.val_check_interval": None}), TrainRSConfig)
    assert "none (trainer.rs.val_check_interval is null)" in plan(never)
