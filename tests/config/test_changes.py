"""What may change between two starts: every key is thought about, and what would mix two runs stops."""

from __future__ import annotations

from typing import Any

import pytest

from rs_aligner.config import TrainRewardModelConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.config.base import Section
from rs_aligner.config.changes import (
    _BY_KEY,
    PARTS,
    SECTIONS,
    STOPS,
    Difference,
    Kind,
    differences,
    kind_of,
    settings_of,
)
from rs_aligner.config.keys import leaves, sections

SCHEMAS: list[type[Section]] = [TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig]
LEAVES = {leaf.key for schema in SCHEMAS for leaf in leaves(schema)}


def config(**rs: Any) -> TrainRSConfig:
    tree: dict[str, Any] = {
        "exp_manager": {"explicit_log_dir": "runs/first"},
        "pretrained_checkpoint": {"restore_from_path": "policy"},
        "model": {"data": {"data_prefix": {"train": ["prompts.jsonl"]}}, "rs": rs},
    }
    return TrainRSConfig.model_validate(tree)


def test_every_key_of_a_training_has_a_kind() -> None:
    unknown = sorted(key for key in LEAVES if kind_of(key) is None)
    assert not unknown, (
        f"what these keys decide is not said: {', '.join(unknown)}. Put each into the table of "
        "rs_aligner/config/changes.py: may it have another value when a run goes on?"
    )


def test_every_rule_is_of_a_key_that_there_is() -> None:
    plain = {key.partition("[")[0].replace(".*", "") for key in LEAVES}
    rules = [*_BY_KEY, *(part.key for part in PARTS.values())]
    assert not [rule for rule in rules if not any(f"{key}.".startswith(f"{rule}.") for key in plain)]


def nullable(schema: type[Section], prefix: str = "") -> set[str]:
    """The sections that may be null."""
    found = set()
    for name, field in schema.model_fields.items():
        for section in sections(field):
            found |= nullable(section, f"{prefix}{name}.")
            if field.annotation is not section and "None" in str(field.annotation):
                found.add(prefix + name)
    return found


def test_every_section_that_may_be_left_out_has_a_kind() -> None:
    assert set().union(*(nullable(schema) for schema in SCHEMAS)) == set(SECTIONS)


# As users see it: what the log of a run that goes on would mix, and what it would not.
MIXES = (
    "model.seed model.global_batch_size model.loss_normalization model.optim.lr model.optim.name "
    "model.optim.sched.warmup_steps model.optim.betas trainer.rs.gradient_clip_val model.rs.top_n_rollouts "
    "model.rs.min_reward model.rs.selection[topk].k model.rs.objective.kl model.rs.objective.advantage "
    "model.rs.objective.anchor.share model.rs.pool.improve_steps model.rs.pool.restart model.rs.pool.passes "
    "model.rs.until.accepted model.rs.until.max_rollouts model.rs.num_rollout_samples "
    "model.rs.num_rollouts_per_prompt model.rs.sampling_params.temperature model.rs.length_params.max_length "
    "model.rs.val_sampling_params.top_p model.rs.num_val_samples model.data.judge_special_tokens "
    "remote_rm.mode exp_manager.checkpoint_callback_params.monitor trainer.sft.gradient_clip_val"
)
GOES_ON = (
    "exp_manager.explicit_log_dir exp_manager.name exp_manager.max_time_per_run trainer.devices "
    "trainer.num_nodes trainer.threads model.tensor_model_parallel_size model.micro_batch_size "
    "trainer.rs.val_check_interval trainer.rs.save_interval trainer.rs.max_steps trainer.rs.max_epochs "
    "trainer.rs.patience remote_rm.request_timeout remote_rm.max_in_flight remote_rm.reward_model.port "
    "remote_rm.endpoints[].ip exp_manager.wandb_logger_kwargs remote_rm.judge.time_limit "
    "remote_rm.judge.workers "
    "pretrained_checkpoint.restore_from_path model.data.data_prefix.train model.rs.offline"
)


def test_what_mixes_two_runs_stops_and_what_does_not_goes_on() -> None:
    for keys, stops in ((MIXES, True), (GOES_ON, False)):
        for key in keys.split():
            assert key in LEAVES, key
            assert (kind_of(key) in STOPS) is stops, key


def test_settings_are_all_leaves_with_their_defaults() -> None:
    settings = settings_of(config(until={"accepted": 1, "at_least": 0.5, "max_rollouts": 8}))
    assert settings["model.optim.lr"] == config().model.optim.lr
    assert settings["model.rs.until.accepted"] == 1
    assert settings["watched_rm"] is None
    assert settings["model.data.data_prefix.train"] == ["prompts.jsonl"]
    assert set(settings) <= {key.partition("[")[0].partition(".*")[0] for key in LEAVES} | set(SECTIONS)


def test_differences_are_listed_key_by_key_and_a_section_that_comes_or_goes_once() -> None:
    until = {"accepted": 1, "at_least": 0.5, "max_rollouts": 8}
    plain, other = settings_of(config()), settings_of(config(until=until, top_n_rollouts=2))
    assert differences(plain, plain) == []
    assert differences(plain, other) == [
        Difference("model.rs.top_n_rollouts", 1, 2),
        Difference("model.rs.until", None, "set"),
    ]
    assert differences(other, plain)[1] == Difference("model.rs.until", "set", None)
    assert differences(other, plain)[1].kind is Kind.SAMPLED


def test_what_was_found_elsewhere_is_put_down_to_the_keys_that_name_the_place() -> None:
    folder, offline, device, judge, patience, *_ = changed = [
        Difference(key, "old", "new")
        for key in (
            "pretrained_checkpoint.restore_from_path",
            "model.rs.offline",
            "trainer.accelerator",
            "remote_rm.judge.name",
            "remote_rm.judge.time_limit",
            "model.optim.lr",
        )
    ]
    assert patience.kind is device.kind is Kind.FREE
    assert PARTS["the model folder"].causes(changed) == [folder]
    assert PARTS["the scored rollouts"].causes(changed) == [offline]
    assert PARTS["the precision"].causes(changed) == [device]
    assert PARTS["the judge"].causes(changed) == [judge]


@pytest.mark.parametrize("missing", ["model.optim.lr", "model.rs.until"])
def test_a_key_that_one_version_does_not_know_is_no_difference(missing: str) -> None:
    settings = settings_of(config())
    fewer = {key: value for key, value in settings.items() if key != missing}
    assert differences(fewer, settings) == differences(settings, fewer) == []
