"""`train_rs.yaml`: its defaults, and values of a step that cannot work."""

from __future__ import annotations

import logging

import pytest

from rs_aligner.config import (
    TrainRSConfig,
    load_config,
)
from tests.config.conftest import compose, problems

pytestmark = pytest.mark.timeout(60)


def test_the_defaults_are_those_of_the_method(tree):
    config = load_config(tree(), TrainRSConfig)
    assert (config.world_size, config.model_parallel_size, config.data_parallel_size) == (1, 1, 1)
    rs = config.model.rs
    assert (rs.num_rollout_samples, rs.num_rollouts_per_prompt, rs.top_n_rollouts) == (512, 4, 1)
    assert rs.min_reward is None
    assert not rs.sampling_params.use_greedy
    assert rs.val_sampling_params.use_greedy
    assert config.remote_rm.startup_timeout == 10
    assert config.model.optim.betas == (0.9, 0.98)


def test_validation_inherits_the_end_strings_of_training_unless_it_has_its_own(tree):
    key = "model.rs.sampling_params.end_strings"
    assert load_config(
        tree(**{key: ["\n", "END"]}), TrainRSConfig
    ).model.rs.val_sampling_params.end_strings == (
        "\n",
        "END",
    )
    own = tree(**{key: "END", "model.rs.val_sampling_params.end_strings": []})
    assert load_config(own, TrainRSConfig).model.rs.val_sampling_params.end_strings == ()
    config = load_config(tree(**{"model.rs.val_sampling_params.temperature": 0.5}), TrainRSConfig)
    assert config.model.rs.val_sampling_params.use_greedy


def test_the_stories_config_is_the_issues_recipe(test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RS_ALIGNER_TEST_DATA", str(test_data))
    composed = compose("stories", [f"exp_manager.explicit_log_dir={tmp_path}"])
    config = load_config(composed, TrainRSConfig)
    rs = config.model.rs
    assert (rs.num_rollout_samples, rs.num_rollouts_per_prompt, rs.top_n_rollouts) == (128, 8, 1)
    assert rs.length_params.max_length == 64
    assert (rs.val_sampling_params.use_greedy, rs.val_sampling_params.temperature) == (False, 1.0)
    assert rs.num_val_rollouts_per_prompt == 4
    assert (config.trainer.rs.max_steps, config.model.global_batch_size) == (2, 16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            ("model.data.judge_special_tokens", value, "should be false, true, or a list of special tokens")
            for value in ([""], ["<think>", 3], 3)
        ),
        ("trainer.devices", 0, "trainer.devices is 0: should be greater than or equal to 1"),
        ("trainer.devices", True, "trainer.devices is true: should be a number"),
        ("trainer.accelerator", "tpu", "trainer.accelerator is \"tpu\": should be 'auto', 'cpu' or 'gpu'"),
        ("trainer.precision", 16, "trainer.precision is 16: fp16 is not supported"),
        ("trainer.precision", "int8", 'trainer.precision is "int8": should be auto, bf16 or 32'),
        ("trainer.rs.max_steps", 0, "trainer.rs.max_steps is 0: should be at least 1, or -1"),
        (
            "trainer.rs.val_check_interval",
            0.5,
            "trainer.rs.val_check_interval is 0.5: should be a valid integer",
        ),
        (
            "trainer.rs.save_interval",
            0,
            "trainer.rs.save_interval is 0: should be greater than or equal to 1",
        ),
        (
            "exp_manager.max_time_per_run",
            "3:30",
            'exp_manager.max_time_per_run is "3:30": should be "DD:HH:MM:SS"',
        ),
        ("exp_manager.max_time_per_run", 12600, "exp_manager.max_time_per_run is 12600: should be"),
        ("exp_manager.max_time_per_run", "00:00:00:00", "should be longer than no time"),
        (
            "exp_manager.checkpoint_callback_params.monitor",
            "loss",
            "should be 'val_global_rewards', 'validation/reward' or",
        ),
        (
            "exp_manager.checkpoint_callback_params.save_top_k",
            -2,
            "save_top_k is -2: should be -1 (keep all)",
        ),
        ("remote_rm.reward_model.port", 70000, "remote_rm.reward_model.port is 70000: should be less than"),
        ("remote_rm.mode", "json", "remote_rm.mode is \"json\": should be 'auto', 'text' or 'tokens'"),
        ("model.rs.top_n_rollouts", 5, "should be at most model.rs.num_rollouts_per_prompt = 4"),
        ("model.rs.top_n_rollouts", 0, "model.rs.top_n_rollouts is 0: should be greater than or equal to 1"),
        ("model.rs.min_reward", "nan", 'model.rs.min_reward is "nan": should be a finite number'),
        ("model.rs.sampling_params.top_p", 0, "top_p is 0: should be greater than 0"),
        ("model.rs.sampling_params.top_k", -1, "top_k is -1: should be greater than or equal to 0"),
        (
            "model.rs.sampling_params.temperature",
            0,
            "should be above 0, or model.rs.sampling_params.use_greedy",
        ),
        ("model.rs.sampling_params.end_strings", ["", "a"], "should have at least 1 character"),
        (
            "model.rs.length_params.min_length",
            300,
            "should be at most model.rs.length_params.max_length = 256",
        ),
        ("model.rs.length_params.max_length", 512, "prompt and response together have at most 512 tokens"),
        ("model.rs.sampling_params", 3, "model.rs.sampling_params is 3: this is a section"),
        ("model.encoder_seq_length", 1024, "the policy was made for at most 512 positions"),
        (
            "model.sequence_parallel",
            True,
            "model.sequence_parallel is true: needs model.tensor_model_parallel_size above 1",
        ),
        (
            "model.activations_checkpoint_granularity",
            "layers",
            "model.activations_checkpoint_granularity is \"layers\": should be 'selective' or 'full'",
        ),
        ("model.precision", "bf16", 'model.precision is "bf16": should be trainer.precision = auto'),
        ("model.loss_normalization", "batch", "should be 'sequence' or 'token'"),
        ("model.optim.name", "sgd", "model.optim.name is \"sgd\": should be 'distributed_fused_adam'"),
        (
            "model.optim.sched.min_lr",
            1e-3,
            "model.optim.sched.min_lr is 0.001: should be at most model.optim.lr = 1e-05",
        ),
        (
            "model.data.data_impl",
            "mmap",
            'model.data.data_impl is "mmap": files are read as they are, without an index',
        ),
        ("model.data.prompt_template", "Answer:", "names no key of the row"),
        ("model.data.prompt_template", "{question", "is not a Python format string"),
        ("model.data.prompt_template", "{}", "should name whole keys of the row"),
        ("model.data.data_prefix.train", [], "model.data.data_prefix.train must be set"),
        (
            "model.data.data_prefix.train",
            "nowhere.jsonl",
            '"nowhere.jsonl": is not there; name JSON Lines, JSON, parquet',
        ),
        ("pretrained_checkpoint.restore_from_path", "nowhere", "is not there; name a Hugging Face folder"),
        ("model.seed", "${nothing}", "model.seed cannot be resolved: Interpolation key 'nothing' not found"),
    ],
)
def test_a_value_that_cannot_work_says_what_would(key, value, message, tree):
    (line,) = problems(tree(**{key: value}))
    assert message in line


@pytest.mark.parametrize(
    ("method", "number", "message"),
    [
        ("uniform", 4, "num_layers is 4: should divide the 6 layers of a pipeline stage"),
        ("block", 7, "num_layers is 7: a pipeline stage has only 6 layers"),
    ],
)
def test_layers_that_are_computed_again_are_those_of_a_stage(method, number, message, tree):
    keys = {"granularity": "full", "method": method, "num_layers": number}
    (line,) = problems(tree(**{f"model.activations_checkpoint_{key}": value for key, value in keys.items()}))
    assert message in line


def test_what_goes_with_whole_layers_only_is_told_where_it_plays_no_part(tree, caplog):
    settings = {"granularity": "selective", "method": "uniform", "num_layers": 1}
    given = {f"model.activations_checkpoint_{key}": value for key, value in settings.items()}
    assert load_config(tree(**given), TrainRSConfig).model.recompute.settings["recompute_modules"] == ["mlp"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all("it goes with model.activations_checkpoint_granularity=full" in line for line in told)


MONITOR = "exp_manager.checkpoint_callback_params"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{MONITOR}.monitor": "validation/watched"},
            f'{MONITOR}.monitor is "validation/watched": needs a wat',
        ),
        (
            {"trainer.rs.patience": 2, f"{MONITOR}.save_top_k": 0},
            "needs the best checkpoint; set it to 1",
        ),
        ({"trainer.rs.patience": 2, "trainer.rs.val_check_interval": None}, "needs held-out figures; set"),
        ({"trainer.rs.patience": 2, f"{MONITOR}.save_top_k": -1}, None),
        ({"trainer.rs.patience": 2, f"{MONITOR}.save_top_k": 1}, None),
        ({f"{MONITOR}.save_top_k": 0}, None),
    ],
)
def test_what_needs_held_out_figures_or_the_best_checkpoint_says_so(changes, message, tree):
    if message is None:
        load_config(tree(**changes), TrainRSConfig)
        return
    (line,) = problems(tree(**changes))
    assert message in line


@pytest.mark.parametrize("least", [0, 256])
def test_a_least_length_on_its_bounds_is_taken(least, tree):
    changed = tree(**{"model.rs.length_params": {"min_length": least, "max_length": 256}})
    assert load_config(changed, TrainRSConfig).model.rs.length_params.min_length == least


def test_equal_rollouts_are_warned_of(tree, caplog):
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{"model.rs.sampling_params.use_greedy": True}), TrainRSConfig)
    assert ["num_rollouts_per_prompt is 4" in record.getMessage() for record in caplog.records] == [True]
