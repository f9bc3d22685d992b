"""Old NeMo-Aligner keys and command lines mean what they meant, or say that they do not."""

from __future__ import annotations

import logging
import shlex

import pytest

from rs_aligner.config import ConfigError, ServeRewardConfig, TrainRSConfig, load_config
from rs_aligner.config.keys import sections, walk
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS
from tests.config.conftest import compose

pytestmark = pytest.mark.timeout(60)

TRAIN_KEYS = """
trainer: num_nodes devices accelerator precision
trainer.rs: max_epochs max_steps val_check_interval save_interval gradient_clip_val rollout_batch_seq_length
remote_rm: pad_to_length
remote_rm.reward_model: name ip port
exp_manager: explicit_log_dir exp_dir name create_wandb_logger wandb_logger_kwargs resume_if_exists
exp_manager: resume_ignore_no_checkpoint create_checkpoint_callback max_time_per_run
exp_manager.checkpoint_callback_params: monitor save_top_k mode
pretrained_checkpoint: restore_from_path
model.rs: rollout_micro_batch_size num_rollout_samples num_rollouts_per_prompt top_n_rollouts num_val_samples
model.rs: offload_adam_states
model.rs.sampling_params: use_greedy temperature top_k top_p repetition_penalty end_strings
model.rs.length_params: max_length min_length
model.peft: peft_scheme restore_from_path
model.peft.lora_tuning: target_modules adapter_dim adapter_dropout
model: micro_batch_size global_batch_size encoder_seq_length tensor_model_parallel_size
model: pipeline_model_parallel_size sequence_parallel seed precision
model.optim: name lr weight_decay betas
model.optim.sched: name warmup_steps constant_steps min_lr
model.data: data_impl seq_length num_workers
model.data.data_prefix: train validation test
"""
SERVER_KEYS = """
inference: port model_name max_queue_delay_microseconds inference_micro_batch_size
inference: strip_sequence_length_to_multiple
rm_model_file
model: forward_micro_batch_size
model.reward_standardization: enable mean std
"""


def listed(text: str) -> list[str]:
    keys = []
    for line in text.strip().splitlines():
        section, _, names = line.partition(": ")
        keys += [f"{section}.{name}" for name in names.split()] or [section]
    return keys


def with_parents(key: str) -> set[str]:
    parts = key.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def nested(key: str, value: object) -> dict:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]  # a key has a name at least


@pytest.mark.parametrize(
    ("key", "lists"),
    [
        *((key, TRAIN_RS) for key in listed(TRAIN_KEYS)),
        *((key, SERVE_REWARD) for key in listed(SERVER_KEYS)),
    ],
)
def test_each_upstream_key_is_in_exactly_one_list(key, lists):
    names = with_parents(key)
    hits = [bool(names & set(keys)) for keys in (lists.used, lists.no_effect, lists.refused)]
    assert sum(hits) == 1


@pytest.mark.parametrize(("lists", "schema"), [(TRAIN_RS, TrainRSConfig), (SERVE_REWARD, ServeRewardConfig)])
def test_exactly_the_used_keys_are_in_the_schema(lists, schema):
    known = {key for key, field in walk(schema) if not sections(field)}
    assert lists.used <= known
    unread = {*lists.no_effect, *lists.refused}
    assert not {key for key in known if with_parents(key) & unread}


@pytest.mark.parametrize(
    ("lists", "key"),
    [(lists, key) for lists in (TRAIN_RS, SERVE_REWARD) for key in lists.no_effect],
)
def test_a_key_without_effect_is_taken_out_with_one_warning(lists, key, caplog):
    tree = nested(key, 7)
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        assert lists.take_out(tree) == []
    assert tree == {}
    assert [record.getMessage() for record in caplog.records] == [
        f"{key} has no effect: {lists.no_effect[key]}"
    ]


@pytest.mark.parametrize(
    ("lists", "key"), [(lists, key) for lists in (TRAIN_RS, SERVE_REWARD) for key in lists.refused]
)
def test_a_refused_key_is_an_error_unless_its_value_asks_for_nothing(lists, key, caplog):
    (line,) = lists.take_out(nested(key, "something"))
    assert line == f'{key} is "something": {lists.refused[key].reason}'
    for harmless in (None, *lists.refused[key].harmless):
        tree = nested(key, harmless)
        assert lists.take_out(tree) == []
        assert tree == {}
    assert not caplog.records


def test_null_asks_for_nothing_and_warns_of_nothing(caplog):
    assert TRAIN_RS.take_out(nested("trainer.rs.rollout_batch_seq_length", None)) == []
    assert not caplog.records


@pytest.mark.parametrize("name", ["train_rs", "recipes/nemo_rs"])
def test_the_documented_command_line_passes_the_check(name, workplace, caplog):
    line = f"""
        pretrained_checkpoint.restore_from_path={workplace}/policy
        "model.data.data_prefix={{train: [{workplace}/train.jsonl],
            validation: [{workplace}/validation.jsonl], test: [{workplace}/test.jsonl]}}"
        exp_manager.explicit_log_dir={workplace}/results
        trainer.rs.max_epochs=1 trainer.rs.max_steps=313 trainer.rs.val_check_interval=4
        trainer.num_nodes=1 trainer.devices=8 ++model.tensor_model_parallel_size=4
        model.global_batch_size=32 model.micro_batch_size=1 model.optim.lr=1e-6 model.optim.sched.min_lr=1e-6
        model.optim.sched.constant_steps=312 model.optim.weight_decay=0.01
        model.rs.num_rollout_samples=32 model.rs.rollout_micro_batch_size=16
        model.rs.num_rollouts_per_prompt=8 model.rs.top_n_rollouts=1 ++model.rs.length_params.max_length=128
        remote_rm.reward_model.ip=judge-node remote_rm.reward_model.port=5556
    """
    overrides = [" ".join(override.split()) for override in shlex.split(line)]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        config = load_config(compose(name, overrides), TrainRSConfig)
    assert [record.getMessage() for record in caplog.records] == [
        "model.data.data_prefix.test has no effect: there is no test pass"
    ]
    assert (config.world_size, config.data_parallel_size) == (8, 2)
    assert config.trainer.rs.max_steps == 313
    assert config.trainer.rs.save_interval == 4
    assert config.model.rs.rollout_micro_batch_size == 16
    assert config.model.rs.length_params.max_length == 128
    assert config.model.optim.lr == 1e-6
    assert config.model.data.data_prefix.train == (f"{workplace}/train.jsonl",)
    assert (config.remote_rm.reward_model.ip, config.remote_rm.reward_model.port) == ("judge-node", 5556)
    # The same line also composes without `open_overrides`: all its keys are in the YAML file.
    assert compose(name, overrides, opened=False) == compose(name, overrides)


def test_the_other_old_keys_of_a_launch_script_need_no_plus(workplace, caplog):
    overrides = [
        f"pretrained_checkpoint.restore_from_path={workplace}/policy",
        f"model.data.data_prefix.train={workplace}/train.jsonl",
        f"exp_manager.explicit_log_dir={workplace}/results",
        'exp_manager.max_time_per_run="01:03:30:15"',
        "model.rs.offload_adam_states=true",
        "model.peft.peft_scheme=none",
        "model.data.data_impl=jsonl",
        "model.encoder_seq_length=512",
        'remote_rm.pad_to_length="${multiply:${model.encoder_seq_length},2}"',
        'model.rs.length_params.max_length="${int_div:${model.encoder_seq_length},4}"',
    ]
    config = load_config(compose("train_rs", overrides), TrainRSConfig)
    assert config.exp_manager.max_time_per_run == 27.5 * 3600 + 15
    assert config.remote_rm.pad_to_length == 1024
    assert config.model.rs.length_params.max_length == 128
    assert config.model.rs.offload_adam_states
    assert caplog.records == []


def test_a_reward_models_archive_is_refused_with_what_to_do_instead():
    with pytest.raises(ConfigError, match=r"rm_model_file is \"rm.nemo\": .*=megatron_reward_model"):
        load_config({"rm_model_file": "rm.nemo", "judge": {"name": "exact_answer"}}, ServeRewardConfig)


@pytest.mark.parametrize(
    ("key", "value", "asks_for_nothing"),
    [
        ("model.peft.lora_tuning.weight_tying", False, True),
        ("model.peft.lora_tuning.layer_selection", [1, 12], False),
        ("model.data.data_impl", "jsonl", True),
        ("model.data.data_impl", "mmap", False),
    ],
)
def test_a_value_that_asks_for_nothing_more_is_taken(key, value, asks_for_nothing):
    assert (TRAIN_RS.take_out(nested(key, value)) == []) == asks_for_nothing
