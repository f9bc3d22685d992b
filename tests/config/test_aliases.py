"""An unknown key that is called like one of another trainer's: the error names the key that is meant."""

from __future__ import annotations

import pytest

from rs_aligner.config import (
    ConfigError,
    GenerateConfig,
    ServeRewardConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.aliases import MEANT, NOTES
from rs_aligner.config.keys import walk
from tests.config.conftest import problems

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("section", ["", "model.", "model.optim.", "trainer."])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "model.optim.lr"),
        ("batch_size", "model.global_batch_size (rows of an optimizer step, over all ranks; model.micro_"),
        ("per_device_train_batch_size", "model.micro_batch_size"),
        ("gradient_accumulation_steps", "model.global_batch_size (rows"),
        ("max_new_tokens", "model.rs.length_params.max_length"),
        ("num_generations", "model.rs.num_rollouts_per_prompt"),
        ("temperature", "model.rs.sampling_params.temperature"),
        ("epochs", "trainer.rs.max_epochs"),
        ("num_train_epochs", "trainer.rs.max_epochs"),
        ("total_steps", "trainer.rs.max_steps"),
        ("warmup_ratio", "model.optim.sched.warmup_steps (a number of optimizer steps; null is"),
        ("max_grad_norm", "trainer.rs.gradient_clip_val"),
        ("kl_coef", "model.rs.objective.kl"),
        ("output_dir", "exp_manager.explicit_log_dir"),
        ("model_name_or_path", "pretrained_checkpoint.restore_from_path"),
        ("eval_steps", "trainer.rs.val_check_interval"),
    ],
)
def test_a_name_from_elsewhere_finds_the_key_that_is_meant_wherever_it_stands(section, name, meant, tree):
    (line,) = problems(tree(**{section + name: 1}))
    assert line.startswith(f"{section}{name} is not a key; the nearest one is {meant}")


def test_a_name_from_elsewhere_finds_the_key_of_each_command(tree):
    changes = {"learning_rate": 1, "num_epochs": 1, "max_new_tokens": 1}
    for schema, section in ((TrainSFTConfig, "sft"), (TrainRewardModelConfig, "rm")):
        with pytest.raises(ConfigError) as error:
            load_config(tree(**changes), schema)
        found = [line.rpartition(" is ")[2] for line in error.value.problems]
        assert found[:2] == ["model.optim.lr", f"trainer.{section}.max_epochs"]
        assert (found[2] == "model.sft.length_params.max_length") == (section == "sft")


def test_a_section_from_elsewhere_is_told_what_its_keys_are_called_here(tree):
    verl = {"actor": {"optim": {"lr": 1e-6}}, "rollout": {"temperature": 0.7, "gpu_memory_utilization": 0.5}}
    (line,) = problems(tree(actor_rollout_ref=verl))
    assert line.endswith(
        "; actor_rollout_ref.actor.optim.lr is model.optim.lr here"
        "; actor_rollout_ref.rollout.temperature is model.rs.sampling_params.temperature here"
    )


def test_each_name_from_elsewhere_means_a_key_that_there_is():
    schemas = (TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig, GenerateConfig, ServeRewardConfig)
    keys = {name for schema in schemas for name, _ in walk(schema)}
    assert {key for meant in MEANT.values() for key in meant} <= keys
    assert NOTES.keys() <= MEANT.keys()
