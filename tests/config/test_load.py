"""One error tells all that is wrong, each line with the key, its value and what would work."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

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
from rs_aligner.config.base import Section
from rs_aligner.config.keys import leaves, meaning, sections, walk
from tests.config.conftest import compose, problems

pytestmark = pytest.mark.timeout(60)


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
        ("model.rs.num_rollouts", 3, "model.rs.num_rollouts_per_prompt"),
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


def test_all_problems_of_a_config_come_at_once(tree):
    lines = problems(
        tree(**{"trainer.devices": 0, "model.seed": -1, "model.foo": 1, "model.peft.peft_scheme": "x"})
    )
    assert len(lines) == 4


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


@pytest.mark.parametrize("schema", [TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig, ServeRewardConfig])
def test_every_key_has_a_description(schema):
    undescribed = [key for key, field in walk(schema) if not sections(field) and not meaning(schema, key)]
    assert undescribed == []


def test_a_section_that_nothing_reads_is_not_built() -> None:
    """All trees together cost more to build than an error takes to tell."""

    class Mine(Section):
        number: int = 1

    assert not Mine.__pydantic_complete__
    assert Mine(number=2).number == 2
    assert Mine.__pydantic_complete__


def test_a_config_stays_as_it_was_checked(tree):
    config = load_config(tree(), TrainRSConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.model.seed = 7


def test_a_time_is_text_or_null(tree):
    key = "exp_manager.max_time_per_run"
    assert load_config(tree(**{key: None}), TrainRSConfig).exp_manager.max_time_per_run is None
    assert load_config(tree(**{key: "00:01:00:00"}), TrainRSConfig).exp_manager.max_time_per_run == 3600
    for value, shown in ((3600, "3600"), (True, "true")):
        (line,) = problems(tree(**{key: value}))
        assert line.startswith(f"{key} is {shown}: ")


@pytest.mark.parametrize(
    "schema", [TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig, GenerateConfig, ServeRewardConfig]
)
def test_true_is_no_number_anywhere(schema):
    """To Python it is the integer 1."""
    for leaf in leaves(schema):
        kind = leaf.field.annotation
        for constraint in leaf.field.metadata:
            kind = Annotated[kind, constraint]
        for value in (True, [True]):
            with contextlib.suppress(ValueError):
                read = TypeAdapter(kind).validate_python(value)
                (inner,) = read if isinstance(read, list | tuple) else [read]
                assert isinstance(inner, bool), f"{leaf.key}={value} is read as {read!r}"
