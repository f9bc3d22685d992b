"""NeMo-Aligner's scripts by name: which command does it here, and what becomes of their overrides.

The keys of rejection sampling and of its server are those of `upstream`; the two other trainings have a few
names of their own, below. Left out on purpose: NeMo-Aligner's config files, whose defaults are not ours
(docs/defaults.md).
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from omegaconf import OmegaConf

from rs_aligner.config.base import Section
from rs_aligner.config.keys import walk
from rs_aligner.config.serve_reward import ServeRewardConfig
from rs_aligner.config.train_reward_model import TrainRewardModelConfig
from rs_aligner.config.train_rs import TrainRSConfig
from rs_aligner.config.train_sft import TrainSFTConfig
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS, Refusal, Upstream

T = TypeVar("T")


@dataclass(frozen=True)
class Script:
    """What stands for one of NeMo-Aligner's scripts.

    Attributes:
        command: of `rs-aligner`.
        schema: the root of its config.
        upstream: what has no effect and what is refused.
        renamed: keys that have another name here.
    """

    command: str
    schema: type[Section]
    upstream: Upstream
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Translation:
    """A command line of NeMo-Aligner as one of ours.

    Attributes:
        command: the words of ours.
        left_out: what has no effect here, each with why.
        refused: what cannot be done, each with why and what to use instead.
    """

    command: tuple[str, ...]
    left_out: tuple[str, ...]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        """What is left out as comments, and the command, for a shell."""
        lines = [f"# no effect here, left out: {line}" for line in self.left_out]
        lines += [f"# refused, left out: {line}" for line in self.refused]
        program, command, *overrides = map(shlex.quote, self.command)
        return "\n".join([*lines, " \\\n    ".join([f"{program} {command}", *overrides])])


_SHARED = ("trainer.rs", "model.rs", "remote_rm")
_VALIDATION = "held-out rows are looked at whole, in batches of model.micro_batch_size"


def _others(no_effect: Mapping[str, str], refused: Mapping[str, Refusal]) -> Upstream:
    """What rejection sampling has in common with the other trainings, and more."""
    same = {key: why for key, why in TRAIN_RS.no_effect.items() if not key.startswith(_SHARED)}
    never = {key: why for key, why in TRAIN_RS.refused.items() if not key.startswith(_SHARED)}
    return Upstream(frozenset(), {**same, **no_effect}, {**never, **refused})


SCRIPTS = {
    "train_gpt_rs_actor.py": Script("train", TrainRSConfig, TRAIN_RS),
    "serve_reward_model.py": Script("serve", ServeRewardConfig, SERVE_REWARD),
    "train_gpt_sft.py": Script(
        "sft",
        TrainSFTConfig,
        _others(
            {
                "model.data.validation_ds.global_batch_size": _VALIDATION,
                "model.data.validation_ds.micro_batch_size": _VALIDATION,
                "model.data.train_ds.shuffle": "rows are always shuffled, by model.seed",
                "model.data.train_ds.num_workers": "rows are read once, by the process itself",
                "trainer.sft.limit_val_batches": _VALIDATION,
            },
            {"model.answer_only_loss": Refusal("only answers are learnt here", (True,))},
        ),
        {
            "model.restore_from_path": "pretrained_checkpoint.restore_from_path",
            "model.data.train_ds.file_path": "model.data.data_prefix.train",
            "model.data.validation_ds.file_path": "model.data.data_prefix.validation",
            "model.data.train_ds.global_batch_size": "model.global_batch_size",
            "model.data.train_ds.micro_batch_size": "model.micro_batch_size",
            "model.data.train_ds.max_seq_length": "model.encoder_seq_length",
        },
    ),
    "train_reward_model.py": Script(
        "reward-model",
        TrainRewardModelConfig,
        _others(
            {
                "trainer.rm.limit_val_batches": _VALIDATION,
                "model.output_sequence": "one score is read behind the last token",
                "model.use_avg_pool": "one score is read behind the last token",
                "model.force_head_dtype": "the head has the precision of the model",
            },
            {
                "model.reward_model_type": Refusal(
                    "only pairs are learnt from ({prompt, chosen, rejected} a row)", ("binary_ranking",)
                ),
                "model.regression": Refusal("only pairs are learnt from ({prompt, chosen, rejected} a row)"),
            },
        ),
    ),
}


def translate(script: str, arguments: Sequence[str]) -> Translation:
    """Our command for one of NeMo-Aligner's.

    Args:
        script: a key of `SCRIPTS`.
        arguments: its command line.
    """
    one = SCRIPTS[script]
    known = [key for key, _ in walk(one.schema)]
    kept: list[str] = []
    left_out: list[str] = []
    refused: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            value = "" if "=" in argument or not rest or "=" in rest[0] else f" {rest.pop(0)}"
            left_out.append(f"{argument}{value}: configs of NeMo-Aligner are not read, only overrides")
            continue
        key, equals, value = argument.lstrip("+").partition("=")
        if not equals or key.startswith("~"):
            left_out.append(f"{argument}: only KEY=VALUE can be translated")
            continue
        key = one.renamed.get(key, key)
        if (why := _found(key, one.upstream.refused)) is not None:
            if _value(value) not in (None, *why.harmless):
                refused.append(f"{key}={value}: {why.reason}")
        elif (reason := _found(key, one.upstream.no_effect)) is not None:
            left_out.append(f"{key}={value}: {reason}")
        elif key in known or any(key.startswith(f"{name}.") and _is_open(name) for name in known):
            kept.append(f"{key}={value}")
        else:
            nearest = difflib.get_close_matches(key, known, 1, 0.0)[0]
            refused.append(f"{key}={value}: is not a key here; the nearest one is {nearest}")
    return Translation(("rs-aligner", one.command, *kept), tuple(left_out), tuple(refused))


def _found(key: str, table: Mapping[str, T]) -> T | None:
    """What a table says of a key, or of a section that it is in."""
    while key:
        if key in table:
            return table[key]
        key = key.rpartition(".")[0]
    return None


def _is_open(key: str) -> bool:
    """Whether a key holds whatever is given to it."""
    return key.endswith("kwargs")


def _value(text: str) -> object:
    """A value as the config reads it."""
    try:
        # OmegaConf says Any.
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except Exception:  # the YAML parser raises its own
        return text
