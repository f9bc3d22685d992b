"""One error tells all that is wrong, each line with the key, its value and what would work."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from rs_aligner.config import (
    ConfigError,
    GenerateConfig,
    ServeRewardConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
    open_overrides,
    register_resolvers,
)
from rs_aligner.config.aliases import MEANT, NOTES
from rs_aligner.config.keys import sections, walk
from tests.config.conftest import POLICY, compose

pytestmark = pytest.mark.timeout(60)


def problems(tree: dict[str, Any], schema: Any = TrainRSConfig) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(tree, schema)
    assert str(error.value) == "\n".join(error.value.problems)
    return list(error.value.problems)


@pytest.mark.parametrize("name", ["train_rs", "train_sft", "train_reward_model"])
def test_the_yaml_file_and_the_schema_have_the_same_defaults(name, tree):
    smallest = tree()
    schema: Any = {
        "train_rs": TrainRSConfig,
        "train_sft": TrainSFTConfig,
        "train_reward_model": TrainRewardModelConfig,
    }[name]
    defaults = load_config(smallest, schema).model_dump()
    composed = compose(name, [])
    composed.merge_with(smallest)
    written = load_config(composed, schema).model_dump()
    # The files spell out what null means, and choose what suits the command.
    for config in (defaults, written):
        del config["model"]["precision"]
        del config["exp_manager"]["wandb_logger_kwargs"]
        for loop in ("rs", "sft", "rm"):
            config["trainer"].get(loop, {}).pop("save_interval", None)
        if name != "train_rs":
            del config["exp_manager"]["name"], config["model"]["optim"]
            del config["trainer"]["sft" if name == "train_sft" else "rm"]["val_check_interval"]
    assert written == defaults


def test_the_yaml_file_of_the_server_and_the_schema_have_the_same_defaults():
    written = load_config(compose("serve_reward", ["judge.name=length"]), ServeRewardConfig)
    assert written == load_config({"judge": {"name": "length"}}, ServeRewardConfig)
    in_file = set(compose("serve_reward", []))
    assert in_file == set(ServeRewardConfig.model_fields)


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


def test_prompts_get_what_the_response_leaves_of_the_sequence(tree):
    config = load_config(tree(**{"model.rs.length_params.max_length": 100}), TrainRSConfig)
    assert config.max_prompt_length(512) == 412
    config = load_config(tree(**{"model.encoder_seq_length": 300}), TrainRSConfig)
    assert config.max_prompt_length(512) == 44
    config = load_config(tree(**{"model.data.seq_length": 30}), TrainRSConfig)
    assert config.max_prompt_length(512) == 30


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


def test_what_must_be_set_is_named_with_its_meaning(workplace):
    lines = problems(dict(compose("train_rs", [])))
    assert [line.partition(" must be set: ")[0] for line in lines] == [
        "exp_manager.explicit_log_dir",
        "model.data.data_prefix.train",
        "pretrained_checkpoint.restore_from_path",
    ]
    assert all(line.partition(" must be set: ")[2] for line in lines)
    assert sorted(problems({})) == lines


def test_a_missing_value_of_an_optional_key_is_named_too(tree):
    assert problems(tree(**{"model.seed": "???"}))[0].startswith("model.seed must be set: Seed of")


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("model.rs.top_n_rollout", 2, "model.rs.top_n_rollouts"),
        ("model.rs.num_rollout_per_prompt", 2, "model.rs.num_rollouts_per_prompt"),
        ("rs.min_reward", 1.0, "model.rs.min_reward"),
        ("trainer.max_step", 3, "trainer.rs.max_steps"),
        ("model.rs.sampling_param", {"top_k": 1}, "model.rs.sampling_params"),
        ("remote_rm.port", 1, "remote_rm.reward_model.port"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key, value, nearest, tree):
    (line,) = problems(tree(**{key: value}))
    head = key if not key.startswith("rs.") else "rs"
    assert line.startswith(f"{head} is not a key; the nearest one is ")
    if head == key:
        assert line.endswith(nearest)


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


@pytest.mark.parametrize("schema", [TrainRSConfig, TrainSFTConfig])
def test_room_for_responses_is_asked_for_only_where_there_are_any(schema, tree, workplace):
    """A model of 256 positions has none beside the default `max_length` of 256."""
    (workplace / "policy" / "config.json").write_text(json.dumps({**POLICY, "max_position_embeddings": 256}))
    train = {TrainRSConfig: {"model.rs.offline": "train.jsonl"}, TrainSFTConfig: {}}[schema]
    keys = {key: str(workplace / value) for key, value in train.items()}
    if schema is TrainRSConfig:
        keys["model.data.data_prefix.train"] = []
    load_config(tree(**keys, **{"model.data.data_prefix.validation": []}), schema)
    judged = {"judge": {"name": "exact_answer"}} if schema is TrainSFTConfig else {}
    with pytest.raises(
        ConfigError, match=r"length_params\.max_length is 256: should leave room for the prompt"
    ):
        load_config(tree(**keys, **judged), schema)


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
        ("model.sequence_parallel", True, "needs model.tensor_model_parallel_size above 1"),
        ("model.precision", "bf16", 'model.precision is "bf16": should be trainer.precision = auto'),
        ("model.loss_normalization", "batch", "should be 'sequence' or 'token'"),
        ("model.optim.name", "sgd", "model.optim.name is \"sgd\": should be 'distributed_fused_adam'"),
        (
            "model.optim.sched.min_lr",
            1e-3,
            "model.optim.sched.min_lr is 0.001: should be at most model.optim.lr = 1e-05",
        ),
        ("model.data.data_impl", "mmap", 'model.data.data_impl is "mmap": only JSON Lines files are read'),
        ("model.data.prompt_template", "Answer:", "names no key of the row"),
        ("model.data.prompt_template", "{question", "is not a Python format string"),
        ("model.data.prompt_template", "{}", "should name whole keys of the row"),
        ("model.data.data_prefix.train", [], "model.data.data_prefix.train must be set"),
        (
            "model.data.data_prefix.train",
            "nowhere.jsonl",
            '"nowhere.jsonl": is not there; name JSON Lines files',
        ),
        ("pretrained_checkpoint.restore_from_path", "nowhere", "is not there; name a Hugging Face folder"),
        ("pretrained_checkpoint.restore_from_path", "gpt.nemo", "is a .nemo archive, which is not read"),
        ("model.seed", "${nothing}", "model.seed cannot be resolved: Interpolation key 'nothing' not found"),
    ],
)
def test_a_value_that_cannot_work_says_what_would(key, value, message, tree):
    (line,) = problems(tree(**{key: value}))
    assert message in line


@pytest.mark.parametrize("least", [0, 256])
def test_a_least_length_on_its_bounds_is_taken(least, tree):
    changed = tree(**{"model.rs.length_params": {"min_length": least, "max_length": 256}})
    assert load_config(changed, TrainRSConfig).model.rs.length_params.min_length == least


def test_all_problems_of_a_config_come_at_once(tree):
    lines = problems(
        tree(**{"trainer.devices": 0, "model.seed": -1, "model.foo": 1, "model.peft.peft_scheme": "x"})
    )
    assert len(lines) == 4


def test_sizes_that_do_not_divide_are_told_with_their_numbers(tree):
    (line,) = problems(tree(**{"trainer.devices": 3, "model.tensor_model_parallel_size": 2}))
    assert line.startswith("trainer.devices is 3: 1 x 3 = 3 ranks should be a multiple of ")
    assert line.endswith("= 2 x 1 = 2")
    sizes = {"trainer.devices": 8, "model.tensor_model_parallel_size": 2, "model.micro_batch_size": 3}
    (line,) = problems(tree(**sizes))
    assert line.startswith("model.global_batch_size is 64: ")
    assert line.endswith("= 3 x 4 = 12, for example 60")
    assert (
        load_config(tree(**sizes, **{"model.global_batch_size": 60}), TrainRSConfig).data_parallel_size == 4
    )


@pytest.mark.parametrize(
    ("key", "size", "message"),
    [
        ("model.tensor_model_parallel_size", 16, "should divide the policy's 8 attention heads"),
        ("model.pipeline_model_parallel_size", 4, "should divide the policy's 6 layers"),
    ],
)
def test_a_layout_that_the_policy_does_not_fit_is_refused(key, size, message, tree):
    (line,) = problems(tree(**{key: size, "trainer.devices": size}))
    assert line == f"{key} is {size}: {message}"


def test_a_folder_that_holds_no_policy_is_refused_and_a_checkpoint_of_a_run_is_not(tree, workplace):
    empty = workplace / "empty"
    empty.mkdir()
    changed = tree(**{"pretrained_checkpoint.restore_from_path": str(empty)})
    assert "is an empty folder; name a Hugging Face folder" in problems(changed)[0]
    for file in ("metadata.json", ".metadata", "__0_0.distcp"):
        (empty / file).write_text("{}")
    assert "is a Megatron checkpoint of another program" in problems(changed)[0]
    (empty / "huggingface").mkdir()
    (empty / "huggingface" / "config.json").write_text("{}")
    assert load_config(changed, TrainRSConfig).pretrained_checkpoint.restore_from_path == str(empty)


def test_padding_below_the_longest_sequence_is_refused(tree):
    changed = tree(**{"remote_rm.pad_to_length": 256, "model.encoder_seq_length": 400})
    assert problems(changed) == [
        "remote_rm.pad_to_length is 256: should be null or at least 400 (model.encoder_seq_length)"
    ]


def test_equal_rollouts_are_warned_of(tree, caplog):
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{"model.rs.sampling_params.use_greedy": True}), TrainRSConfig)
    assert ["num_rollouts_per_prompt is 4" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("written", "read"), [("bf16-mixed", "bf16"), (32, "fp32"), ("32-true", "fp32"), ("auto", "auto")]
)
def test_precisions_have_one_spelling_once_read(written, read, tree):
    assert load_config(tree(**{"trainer.precision": written}), TrainRSConfig).trainer.precision == read


def test_the_resolvers_can_be_registered_twice_and_count_in_whole_numbers(tree):
    register_resolvers()
    register_resolvers()
    changed = tree(**{"model.global_batch_size": "${multiply:4,${int_div:7,2}}"})
    assert load_config(changed, TrainRSConfig).model.global_batch_size == 12


def test_overrides_are_opened_and_nothing_else():
    given = [
        "a.b=1",
        "+c=2",
        "++d=x=y",
        "~e",
        "hydra.run.dir=x",
        "hydra/job_logging=none",
        "--multirun",
        "-cn=x",
    ]
    assert open_overrides(given) == ["++a.b=1", "++c=2", "++d=x=y", *given[3:]]


def test_an_unknown_override_reaches_the_check(workplace):
    with pytest.raises(ConfigError, match=r"model\.rs\.min_rewards is not a key; .* model\.rs\.min_reward$"):
        load_config(
            compose(
                "train_rs",
                [
                    "model.rs.min_rewards=1",
                    "exp_manager.explicit_log_dir=x",
                    f"model.data.data_prefix.train={workplace}/train.jsonl",
                    f"pretrained_checkpoint.restore_from_path={workplace}/policy",
                ],
            ),
            TrainRSConfig,
        )


def test_a_judge_is_either_a_function_or_a_name(tmp_path):
    config = load_config(compose("serve_reward", ["judge.name=exact_answer"]), ServeRewardConfig)
    assert (config.inference.host, config.inference.port) == ("127.0.0.1", 5555)
    assert problems({}, ServeRewardConfig)[0].startswith("judge: nothing is set; set one of judge.name")
    both = {"judge": {"name": "sentiment", "function": "a:b"}}
    assert problems(both, ServeRewardConfig)[0].startswith("judge: function and name is set; set one of")
    for wrong in ("judge.py", ":f", "judge:", "judge:a b"):
        assert (
            "should be path/to/file.py:name" in problems({"judge": {"function": wrong}}, ServeRewardConfig)[0]
        )
    gone = {"judge": {"function": f"{tmp_path}/judge.py:score"}}
    assert "there is no such file" in problems(gone, ServeRewardConfig)[0]
    (tmp_path / "judge.py").touch()
    assert load_config(gone, ServeRewardConfig).judge.function == f"{tmp_path}/judge.py:score"
    assert (
        "Hugging Face folder"
        in problems({"judge": {"name": "sentiment"}, "tokenizer": f"{tmp_path}/none"}, ServeRewardConfig)[0]
    )


def test_the_parts_of_a_weighted_judge_are_checked_like_judges():
    overrides = ["judge.parts={right: {name: final_answer, weight: 2}, short: {name: length}}"]
    config = load_config(compose("serve_reward", overrides), ServeRewardConfig)
    assert (config.judge.parts["right"].weight, config.judge.parts["short"].weight) == (2.0, 1.0)
    wrong = {"judge": {"parts": {"a": {"weight": 1}, "b": {"function": "x"}}}}
    first, second = problems(wrong, ServeRewardConfig)
    assert first.startswith("judge.parts.a: nothing is set; set one of judge.parts.a.name")
    assert second.startswith('judge.parts.b.function is "x": should be path/to/file.py:name')
    assert (
        "judge.parts.a.nam is not a key"
        in problems({"judge": {"parts": {"a": {"nam": "length"}}}}, ServeRewardConfig)[0]
    )


def test_a_standardised_reward_needs_its_mean_and_deviation(caplog):
    def tree(**standard):
        return {"judge": {"name": "length"}, "model": {"reward_standardization": standard}}

    assert problems(tree(enable=True, mean=1.0), ServeRewardConfig) == [
        "model.reward_standardization.std must be set: reward_standardization is enabled"
    ]
    assert "should be greater than 0" in problems(tree(enable=True, mean=1.0, std=0), ServeRewardConfig)[0]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(enable=True, mean=1.0, std=2.0), ServeRewardConfig)
        assert not caplog.records
        load_config(tree(mean=1.0), ServeRewardConfig)
    assert ["mean has no effect" in record.getMessage() for record in caplog.records] == [True]


def test_the_files_of_the_server_have_to_be_there(tmp_path):
    judge = {"name": "length"}
    gone = str(tmp_path / "gone")
    lines = problems(
        {
            "judge": judge,
            "inference": {"token_file": gone},
            "check": True,
            "check_data": gone,
            "check_policy": gone,
        },
        ServeRewardConfig,
    )
    assert [line.partition(" is ")[0] for line in lines] == [
        "inference.token_file",
        "check_data",
        "check_policy",
    ]
    (line,) = problems({"judge": judge, "check_policy": str(tmp_path)}, ServeRewardConfig)
    assert line.endswith("plays a part in a check only; set check=true, or drop it")


def test_stopping_at_a_score_needs_a_judge_and_held_out_prompts(tree):
    changed = tree(**{"trainer.sft.stop_at_validation": 0.3})
    assert problems(changed, TrainSFTConfig) == [
        "trainer.sft.stop_at_validation is 0.3: needs judge, for a held-out score"
    ]
    changed["judge"] = {"name": "exact_answer"}
    assert load_config(changed, TrainSFTConfig).trainer.sft.stop_at_validation == 0.3
    changed["model"]["data"]["data_prefix"]["validation"] = []
    assert problems(changed, TrainSFTConfig)[0].startswith("model.data.data_prefix.validation must be set")


def test_a_judge_can_be_set_from_the_command_line_of_the_supervised_training(workplace):
    overrides = [
        f"pretrained_checkpoint.restore_from_path={workplace}/policy",
        f"model.data.data_prefix.train={workplace}/train.jsonl",
        f"model.data.data_prefix.validation={workplace}/validation.jsonl",
        f"exp_manager.explicit_log_dir={workplace}/run",
        "judge.name=exact_answer",
        "trainer.sft.stop_at_validation=0.3",
    ]
    config = load_config(compose("train_sft", overrides), TrainSFTConfig)
    assert config.judge is not None
    assert config.judge.name == "exact_answer"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.data.data_prefix.train", [], 'a file of {"prompt", "chosen", "rejected"} rows, or a list'),
        ("trainer.rm.max_steps", 0, "trainer.rm.max_steps is 0: should be at least 1, or -1"),
        (
            "exp_manager.checkpoint_callback_params.monitor",
            "validation/loss",
            'checkpoint_callback_params.mode is "max": should be min, since validation/loss is monitored',
        ),
        ("exp_manager.checkpoint_callback_params.monitor", "val_global_rewards", "'validation/accuracy' or"),
        ("model.loss_normalization", "token", "model.loss_normalization is not a key; the nearest one is"),
        ("model.tensor_model_parallel_size", 2, "trainer.devices is 1: 1 x 1 = 1 ranks should be a multiple"),
        ("model.encoder_seq_length", 1024, "the policy was made for at most 512 positions"),
    ],
)
def test_a_reward_models_training_says_what_would_work(key, value, message, tree):
    (line,) = problems(tree(**{key: value}), TrainRewardModelConfig)
    assert message in line


@pytest.mark.parametrize("schema", [TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig, ServeRewardConfig])
def test_every_key_has_a_description(schema):
    assert [key for key, field in walk(schema) if not sections(field) and not field.description] == []


def test_endpoints_are_texts_or_sections_and_take_the_models_name(tree):
    changed = tree(
        **{
            "remote_rm.endpoints": ["a:1", {"ip": "b", "port": 2, "name": "own"}, "http://[::1]:3"],
            "remote_rm.reward_model.name": "judge",
        }
    )
    servers = load_config(changed, TrainRSConfig).remote_rm.servers
    assert [(one.ip, one.port, one.name) for one in servers] == [
        ("a", 1, "judge"),
        ("b", 2, "own"),
        ("::1", 3, "judge"),
    ]
    assert [one.url for one in servers] == ["http://a:1", "http://b:2", "http://[::1]:3"]
    alone = load_config(tree(**{"remote_rm.reward_model.port": 7}), TrainRSConfig).remote_rm
    assert [one.port for one in alone.servers] == [7]
    composed = compose("train_rs", ["remote_rm.endpoints=[node1:5555,node2:5556]"])
    composed.merge_with(tree())
    assert [one.port for one in load_config(composed, TrainRSConfig).remote_rm.servers] == [5555, 5556]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ["judge-node"]}, "'judge-node' should be \"host:port\""),
        ({"endpoints": 7}, 'should be a list of "host:port"'),
        ({"endpoints": ["a:1", "a:1"]}, "names a server twice"),
        ({"endpoints": ["a:0"]}, "remote_rm.endpoints.0.port is 0"),
        ({"endpoints": [{"ip": "a", "prot": 1}]}, "remote_rm.endpoints.0.prot is not a key"),
        (
            {"endpoints": ["a:1"], "reward_model": {"ip": "b"}},
            'remote_rm.reward_model.ip is "b": remote_rm.endpoints lists other servers',
        ),
        ({"endpoints": ["a:1"], "reward_model": {"port": 2}}, "remote_rm.reward_model.port is 2"),
        ({"in_process": True}, "remote_rm.judge must be set"),
        ({"judge": {"name": "exact_answer"}}, "a server brings its own judge"),
        (
            {"in_process": True, "judge": {}},
            "remote_rm.judge: nothing is set; set one of remote_rm.judge.name",
        ),
        (
            {"in_process": True, "judge": {"name": "exact_answer"}, "endpoints": ["a:1"]},
            "leave remote_rm.endpoints empty",
        ),
        ({"in_process": True, "judge": {"name": "exact_answer"}, "mode": "tokens"}, "gets texts"),
        ({"max_queued": 8}, "should be at least remote_rm.max_batch_size = 64"),
        ({"token_file": "nowhere"}, 'remote_rm.token_file is "nowhere": there is no such file'),
        ({"on_failure": "zero"}, "should be 'drop', 'retry' or 'abort'"),
        ({"max_failed_fraction": 1.5}, "should be less than or equal to 1"),
        ({"give_up_after": 0}, "should be greater than 0"),
        ({"max_attempts": 0}, "should be greater than or equal to 1"),
    ],
)
def test_a_judges_settings_that_cannot_work_say_what_would(changes, message, tree):
    lines = problems(tree(**{f"remote_rm.{key}": value for key, value in changes.items()}))
    assert len(lines) == 1
    assert message in lines[0]


def test_one_server_may_be_named_in_both_ways(tree):
    changed = tree(
        **{"remote_rm.endpoints": ["a:1", "b:2"], "remote_rm.reward_model": {"ip": "b", "port": 2}}
    )
    assert len(load_config(changed, TrainRSConfig).remote_rm.servers) == 2


def test_a_watched_judge_is_told_what_it_cannot_do(tree, caplog):
    assert problems(tree(**{"watched_rm.on_failure": "abort"})) == [
        'watched_rm.on_failure is "abort": a watched judge ends no run; set it to drop or retry'
    ]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{"watched_rm.max_failed_fraction": 0.1}), TrainRSConfig)
    assert "watched_rm.max_failed_fraction has no effect" in caplog.text
    caplog.clear()
    load_config(tree(**{"watched_rm.reward_model.port": 5556}), TrainRSConfig)
    load_config(tree(**{"remote_rm.max_failed_fraction": 0.1}), TrainRSConfig)
    assert "has no effect" not in caplog.text


def test_supervised_training_has_no_watched_judge_to_monitor(tree):
    key = "exp_manager.checkpoint_callback_params.monitor"
    assert problems(tree(**{key: "validation/watched"}), TrainSFTConfig) == [
        f'{key} is "validation/watched": there is no watched judge here; set it to validation/reward'
    ]
