"""What may change between two starts of a run: what each key decides, and how two configs differ.

Every key of the three trainings has a kind. What decides neither rollouts nor training goes on, told in one
line; what would mix two runs is for the user to allow (`exp_manager.allow_changes`). A key that says where
something lies, or how it is read, is judged by what lies there: a moved file is no change, another file under
the old name is one. Left out on purpose: fingerprints of what lies there, and what becomes of a difference
(`record/attempts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rs_aligner.config.base import Section
from rs_aligner.config.keys import below_key


class Kind(Enum):
    """What a key decides."""

    FREE = "neither what is sampled, nor scores, nor what is learnt"
    LENGTH = "how long the run is, and with it the course of the learning rate"
    PLACE = "where something lies or how it is read: what was found there is compared"
    SAMPLED = "what is sampled, and what it scores"
    LEARNT = "what is learnt from it"
    CHOSEN = "which step counts as the best"
    ALIAS = "nothing of its own: it sets other keys"


STOPS = (Kind.SAMPLED, Kind.LEARNT, Kind.CHOSEN)
"""Kinds whose change would mix two runs."""

_LOOPS = ("trainer.rs", "trainer.sft", "trainer.rm")
_JUDGES = ("remote_rm", "watched_rm")


def _under(sections: tuple[str, ...], names: str) -> list[str]:
    return [f"{section}.{name}" for section in sections for name in names.split()]


_KINDS: dict[Kind, list[str]] = {
    Kind.FREE: [
        # A layout and a wave change the last bits at most; so do threads.
        *_under(("trainer",), "num_nodes devices accelerator threads timeout_minutes enable_progress_bar"),
        *_under(_LOOPS, "val_check_interval save_interval max_bad_steps"),
        "trainer.rs.patience",
        "trainer.sft.stop_at_validation",
        *_under(("exp_manager",), "explicit_log_dir name create_tensorboard_logger create_wandb_logger"),
        *_under(("exp_manager",), "wandb_logger_kwargs resume_if_exists max_time_per_run allow_changes"),
        *_under(("exp_manager",), "report stop_within send_rollout_texts"),
        *_under(("exp_manager",), "create_mlflow_logger mlflow_logger_kwargs"),
        *_under(("exp_manager",), "create_trackio_logger trackio_logger_kwargs"),
        "exp_manager.checkpoint_callback_params.save_top_k",
        *_under(("model",), "tensor_model_parallel_size pipeline_model_parallel_size sequence_parallel"),
        "model.expert_model_parallel_size",
        *_under(("model",), "micro_batch_size peft.export"),
        *_under(("model",), "activations_checkpoint_granularity activations_checkpoint_method"),
        *_under(("model",), "activations_checkpoint_num_layers optim.overlap_grad_sync"),
        "model.max_tokens_per_microbatch",
        "model.rs.rollout_micro_batch_size",
        *_under(("model.rs",), "passed_above kl_samples generation"),  # but for two keys, below
        "model.rs.objective.offload_reference",
        # Copies come back with the same bits.
        "model.rs.offload_adam_states",
        "model.optim.offload_fraction",
        # How servers are asked, and how long a judge may take: a row that fails is rejected, never scored.
        *_under(_JUDGES, "token_file ca_file max_batch_size max_wait_seconds max_in_flight max_queued"),
        *_under(_JUDGES, "startup_timeout request_timeout on_failure give_up_after max_attempts"),
        *_under(_JUDGES, "max_failed_fraction judge.time_limit judge.workers"),
        *_under(("judge",), "time_limit workers"),
    ],
    Kind.LENGTH: _under(_LOOPS, "max_epochs max_steps"),
    Kind.PLACE: [
        "trainer.precision",  # auto is another one on another device
        *_under(("pretrained_checkpoint", "model.peft"), "restore_from_path"),
        *_under(("model.data",), "data_prefix.train data_prefix.validation overlap seq_length"),
        *_under(("model.data",), "prompt_template columns add_bos chat_template_kwargs"),
        "model.encoder_seq_length",
        *_under(("model.rs",), "offline objective.anchor.files"),
        *_under(_JUDGES, "reward_model endpoints in_process judge"),
        "judge",
    ],
    Kind.SAMPLED: [
        "model.seed",
        "model.data.judge_special_tokens",
        "pretrained_checkpoint.resize_token_embeddings",
        *_under(("model.rs",), "num_rollout_samples num_rollouts_per_prompt pool.improve_steps until"),
        *_under(("model.rs",), "sampling_params length_params generation.sync_interval"),
        # Held-out answers have their place in the ledger, too, and their figures are of one curve.
        *_under(("model.rs",), "num_val_samples num_val_rollouts_per_prompt val_sampling_params"),
        *_under(("model.sft",), "num_val_samples sampling_params length_params"),
        *_under(_JUDGES, "mode pad_to_length"),
    ],
    Kind.LEARNT: [
        *_under(_LOOPS, "gradient_clip_val"),
        *_under(("model",), "global_batch_size optim loss_normalization peft.peft_scheme peft.lora_tuning"),
        *_under(("model.rs",), "top_n_rollouts min_reward selection objective generation.max_version_lag"),
        *_under(("model.rs.pool",), "max_staleness restart passes"),
    ],
    Kind.CHOSEN: _under(("exp_manager.checkpoint_callback_params",), "mode monitor"),
    Kind.ALIAS: ["model.precision", "model.rs.rft"],
}
_BY_KEY = {key: kind for kind, keys in _KINDS.items() for key in keys}

SECTIONS = {
    "watched_rm": Kind.PLACE,
    "remote_rm.judge": Kind.PLACE,
    "watched_rm.judge": Kind.PLACE,
    "judge": Kind.PLACE,
    "model.rs.until": Kind.SAMPLED,
    "model.rs.rft": Kind.ALIAS,
}
"""What it is to add or to leave out a section that may be null."""

_READ_BY = (
    *_under(("model.data",), "overlap seq_length prompt_template columns add_bos chat_template_kwargs"),
    "model.encoder_seq_length",
)
"""What decides, beside the files, which rows there are and what they say."""


@dataclass(frozen=True)
class Part:
    """Something that was found where keys of kind PLACE point to.

    Attributes:
        name: in words.
        key: that stands for it, as in `exp_manager.allow_changes`.
        kind: what it decides.
        read_by: further keys that decide what was found.
    """

    name: str
    key: str
    kind: Kind
    read_by: tuple[str, ...] = ()

    def causes(self, changed: Sequence[Difference]) -> list[Difference]:
        """The changed keys that may be why something else was found."""
        return [one for one in changed if one.key in self.read_by or self._is_within(one)]

    def _is_within(self, one: Difference) -> bool:
        """Whether it says where to look; beside a judge's address, say, stands how long it may take."""
        return one.kind is Kind.PLACE and is_named(one.key, [self.key])


PRECISION = Part("the precision", "trainer.precision", Kind.SAMPLED, ("trainer.accelerator",))
MODEL = Part("the model folder", "pretrained_checkpoint.restore_from_path", Kind.SAMPLED)
ADAPTER = Part("the adapter folder", "model.peft.restore_from_path", Kind.SAMPLED)
TRAIN = Part("the data to train on", "model.data.data_prefix.train", Kind.SAMPLED, _READ_BY)
HELD_OUT = Part("the held-out data", "model.data.data_prefix.validation", Kind.SAMPLED, _READ_BY)
OFFLINE = Part("the scored rollouts", "model.rs.offline", Kind.LEARNT, _READ_BY)
ANCHORS = Part("the supervised rows", "model.rs.objective.anchor.files", Kind.LEARNT, _READ_BY)
SELECTORS = Part("the code of the selectors", "model.rs.selection", Kind.LEARNT)
JUDGE = Part("the judge", "remote_rm", Kind.SAMPLED)
WATCHED = Part("the watched judge", "watched_rm", Kind.SAMPLED)
SFT_JUDGE = Part("the judge of held-out answers", "judge", Kind.SAMPLED)
PARTS = {
    part.name: part
    for part in (
        PRECISION,
        MODEL,
        ADAPTER,
        TRAIN,
        HELD_OUT,
        OFFLINE,
        ANCHORS,
        SELECTORS,
        JUDGE,
        WATCHED,
        SFT_JUDGE,
    )
}


@dataclass(frozen=True)
class Difference:
    """A key with another value than before.

    Attributes:
        key: the key, or that of a section that is null in one of the two.
        old, new: the values, as JSON has them; a section is shown as "set".
    """

    key: str
    old: Any
    new: Any

    @property
    def kind(self) -> Kind:
        """What the key decides."""
        if "set" in (self.old, self.new) and self.key in SECTIONS:
            return SECTIONS[self.key]
        found = kind_of(self.key)
        return Kind.SAMPLED if found is None else found  # a key that this version has dropped


def kind_of(key: str) -> Kind | None:
    """What a leaf of a training's config decides; None where nobody has said it.

    The longest rule that names the key, or a section above it, counts.
    """
    parts = key.partition("[")[0].replace(".*", "").split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_BY_KEY[name] for name in names if name in _BY_KEY), None)


def settings_of(config: Section) -> dict[str, Any]:
    """All leaves of a config by their keys, defaults included, as JSON has them; lists and dicts whole."""
    return dict(_leaves(type(config), config.model_dump(mode="json"), ""))


def _leaves(section: type[Section], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        below = [one for step, one in below_key(field) if not step]
        if below and values[name] is not None:
            yield from _leaves(below[0], values[name], f"{prefix}{name}.")
        else:
            yield prefix + name, values[name]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Where two configs differ; keys that only one of them knows count as they are by default.

    Args:
        old: settings as `settings_of` gives them, perhaps by an earlier version.
        new: settings as this version gives them.
    """
    found: dict[str, Difference] = {}
    for key in new.keys() | old.keys():
        section = _section(key, old, new)
        if section is not None:
            was_set = section not in old
            found[section] = Difference(section, "set" if was_set else None, None if was_set else "set")
        elif key in old and key in new and old[key] != new[key]:
            found[key] = Difference(key, old[key], new[key])
    return [found[key] for key in sorted(found)]


def _section(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The section at or above a key that is null in one of the two, and not in the other."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        above = ".".join(parts[:length])
        if (above in old) != (above in new) and above in SECTIONS:
            return above
    return None


def is_named(key: str, names: Sequence[str]) -> bool:
    """Whether one of the names is the key, or a section above it."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
