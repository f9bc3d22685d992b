"""What the trainings' configs have in common: layout, policy, lengths; and what each of them needs."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from rs_aligner.config import (
    ConfigError,
    OptimConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.sampling import LengthParams
from rs_aligner.config.training import LoopConfig, PolicyTrainConfig, TrainConfig
from tests.config.conftest import POLICY, compose, problems

pytestmark = pytest.mark.timeout(60)


def test_a_training_has_to_say_what_its_loop_is_and_one_of_a_policy_what_it_samples() -> None:
    class NoLoop(TrainConfig): ...

    class NoLengths(PolicyTrainConfig):
        @property
        def samples(self) -> bool:
            return True

        @property
        def loop(self) -> LoopConfig:
            return LoopConfig()

    class NoSamples(NoLengths):
        samples: ClassVar[Any] = PolicyTrainConfig.samples

        @property
        def length_params(self) -> LengthParams:
            return LengthParams()

    for schema, lacks in ((NoLoop, "loop"), (NoLengths, "length_params"), (NoSamples, "samples")):
        with pytest.raises(TypeError, match=f"abstract.*{lacks}"):
            schema()


def test_prompts_get_what_the_response_leaves_of_the_sequence(tree):
    config = load_config(tree(**{"model.rs.length_params.max_length": 100}), TrainRSConfig)
    assert config.max_prompt_length(512) == 412
    config = load_config(tree(**{"model.encoder_seq_length": 300}), TrainRSConfig)
    assert config.max_prompt_length(512) == 44
    config = load_config(tree(**{"model.data.seq_length": 30}), TrainRSConfig)
    assert config.max_prompt_length(512) == 30


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.devices": 2}, "is 2: should be 1: the policy has no experts"),
        ({}, "is 2: should divide the data-parallel size, 1: replicas share experts out"),
        (
            {"trainer.devices": 2, "model.optim.name": "adam"},
            "is 2: needs model.optim.name=distributed_fused_adam",
        ),
    ],
)
def test_experts_that_cannot_be_shared_out_are_told_with_what_would_work(changes, message, tree):
    found = problems(tree(**{"model.expert_model_parallel_size": 2, **changes}))
    assert f"model.expert_model_parallel_size {message}" in found


@pytest.mark.parametrize("name", ["num_local_experts", "num_experts"])
def test_experts_are_shared_out_evenly(name, tree, workplace):
    config = workplace / "policy" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: 6}))
    sizes = {"trainer.devices": 4, "model.expert_model_parallel_size": 4}
    assert problems(tree(**sizes)) == [
        "model.expert_model_parallel_size is 4: should divide the policy's 6 experts"
    ]
    sizes["model.expert_model_parallel_size"] = 2
    assert load_config(tree(**sizes), TrainRSConfig).model.expert_model_parallel_size == 2


def test_a_folder_that_holds_no_policy_is_refused_and_a_checkpoint_of_a_run_is_not(tree, workplace):
    empty = workplace / "empty"
    empty.mkdir()
    changed = tree(**{"pretrained_checkpoint.restore_from_path": str(empty)})
    assert "is an empty folder; name a Hugging Face folder" in problems(changed)[0]
    for file in ("metadata.json", ".metadata", "__0_0.distcp"):
        (empty / file).write_text("{}")
    assert f"{empty} from the Hugging Face folder of that model" in problems(changed)[0]
    (empty / "huggingface").mkdir()
    (empty / "huggingface" / "config.json").write_text("{}")
    assert load_config(changed, TrainRSConfig).pretrained_checkpoint.restore_from_path == str(empty)


@pytest.mark.parametrize(
    ("written", "read"), [("bf16-mixed", "bf16"), (32, "fp32"), ("32-true", "fp32"), ("auto", "auto")]
)
def test_precisions_have_one_spelling_once_read(written, read, tree):
    assert load_config(tree(**{"trainer.precision": written}), TrainRSConfig).trainer.precision == read


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
        ("model.optim", 3, "model.optim is 3: this is a section"),
        ("model.peft", 3, "model.peft is 3: this is a section"),
        ("model.loss_normalization", "token", "model.loss_normalization is not a key; the nearest one is"),
        ("model.tensor_model_parallel_size", 2, "trainer.devices is 1: 1 x 1 = 1 ranks should be a multiple"),
        ("model.encoder_seq_length", 1024, "the policy was made for at most 512 positions"),
    ],
)
def test_a_reward_models_training_says_what_would_work(key, value, message, tree):
    (line,) = problems(tree(**{key: value}), TrainRewardModelConfig)
    assert message in line


def test_supervised_training_has_no_watched_judge_to_monitor(tree):
    key = "exp_manager.checkpoint_callback_params.monitor"
    assert problems(tree(**{key: "validation/watched"}), TrainSFTConfig) == [
        f'{key} is "validation/watched": there is no watched judge here; set it to validation/reward'
    ]


def test_one_optimizer_shards_its_state_and_the_others_do_not():
    names = ("distributed_fused_adam", "fused_adam", "adam", "adamw")
    assert [OptimConfig(name=name).distributed for name in names] == [True, False, False, False]
