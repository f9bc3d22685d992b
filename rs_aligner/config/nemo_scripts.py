"""NeMo-Aligner's scripts by name: which command does it here, and what becomes of their overrides.

The keys of rejection sampling and of its server are those of `upstream`, those of the two other trainings are
in `nemo_trainings`. Left out on purpose: NeMo-Aligner's config files, whose defaults are not ours
(docs/defaults.md).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from omegaconf import OmegaConf

from rs_aligner.config import nemo_trainings
from rs_aligner.config.base import Section
from rs_aligner.config.keys import walk
from rs_aligner.config.serve_reward import ServeRewardConfig
from rs_aligner.config.train_reward_model import TrainRewardModelConfig
from rs_aligner.config.train_rs import TrainRSConfig
from rs_aligner.config.train_sft import TrainSFTConfig
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS, Upstream

T = TypeVar("T")
_PLAIN = re.compile(r"[\w./:+~@%-]+|\$\{[^{}]*\}")
"""Texts that Hydra takes without quotes."""


@dataclass(frozen=True)
class Script:
    """What stands for one of NeMo-Aligner's scripts.

    Attributes:
        command: of `rs-aligner`.
        schema: the root of its config.
        upstream: what has no effect and what is refused.
        renamed: keys that have another name here.
        values: values that have another name here, by key: the overrides that say the same.
        notes: what else has to change besides the command line.
    """

    command: str
    schema: type[Section]
    upstream: Upstream
    renamed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Translation:
    """A command line of NeMo-Aligner as one of ours.

    Attributes:
        command: the words of ours.
        left_out: what has no effect here, each with why.
        refused: what cannot be done, each with why and what to use instead.
        notes: what else has to change.
    """

    command: tuple[str, ...]
    left_out: tuple[str, ...]
    refused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is left out as comments, and the command, for a shell."""
        lines = [f"# no effect here, left out: {line}" for line in self.left_out]
        lines += [f"# refused, left out: {line}" for line in self.refused]
        lines += [f"# {line}" for line in self.notes]
        program, command, *overrides = map(shlex.quote, self.command)
        return "\n".join([*lines, " \\\n    ".join([f"{program} {command}", *overrides])])


SCRIPTS = {
    "train_gpt_rs_actor.py": Script("train", TrainRSConfig, TRAIN_RS),
    "serve_reward_model.py": Script("serve", ServeRewardConfig, SERVE_REWARD),
    "train_gpt_sft.py": Script("sft", TrainSFTConfig, nemo_trainings.SFT, nemo_trainings.SFT_RENAMED),
    "train_reward_model.py": Script(
        "reward-model",
        TrainRewardModelConfig,
        nemo_trainings.REWARD_MODEL,
        values=nemo_trainings.REWARD_MODEL_VALUES,
        notes=(nemo_trainings.PAIRS,),
    ),
}


def translate(script: str, arguments: Sequence[str]) -> Translation:
    """Our command for one of NeMo-Aligner's.

    Args:
        script: a key of `SCRIPTS`.
        arguments: its command line.
    """
    one = SCRIPTS[script]
    found = _Found([], [], [])
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            value = "" if "=" in argument or not rest or "=" in rest[0] else f" {rest.pop(0)}"
            found.left_out.append(f"{argument}{value}: configs of NeMo-Aligner are not read, only overrides")
            continue
        key, equals, value = argument.lstrip("+").partition("=")
        if not equals or key.startswith("~"):
            found.left_out.append(f"{argument}: only KEY=VALUE can be translated")
        else:
            _sort(one, key, value, found)
    lists = (tuple(lines) for lines in found)
    kept, left_out, refused = lists
    return Translation(("rs-aligner", one.command, *kept), left_out, refused, one.notes)


class _Found(NamedTuple):
    """What was found of the overrides so far."""

    kept: list[str]
    left_out: list[str]
    refused: list[str]


def _sort(one: Script, key: str, value: str, found: _Found) -> None:
    """Put an override where it belongs; a section's keys one by one, unless all of them carry over."""
    below = _value(value)
    if isinstance(below, dict) and below and not _is_open(key):
        apart = _Found([], [], [])
        for name, inner in below.items():
            _sort(one, f"{key}.{name}", _text(inner), apart)
        if [override.partition("=")[0] for override in apart.kept] == [f"{key}.{name}" for name in below]:
            apart = _Found([f"{key}={value}"], [], [])
        for lines, more in zip(found, apart, strict=True):
            lines.extend(more)
        return
    known = [name for name, _ in walk(one.schema)]
    if key in one.renamed:
        found.kept.append(f"{one.renamed[key]}={value}")
    elif (why := _listed(key, one.upstream.refused)) is not None:
        if below not in (None, *why.harmless):
            found.refused.append(f"{key}={value}: {why.reason}")
    elif (reason := _listed(key, one.upstream.no_effect)) is not None:
        found.left_out.append(f"{key}={value}: {reason}")
    elif key in known or any(key.startswith(f"{name}.") and _is_open(name) for name in known):
        found.kept.extend(one.values.get(key, {}).get(value, (f"{key}={value}",)))
    else:
        nearest = difflib.get_close_matches(key, known, 1, 0.0)[0]
        found.refused.append(f"{key}={value}: is not a key here; the nearest one is {nearest}")


def _listed(key: str, table: Mapping[str, T]) -> T | None:
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
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]  # untyped there
    except Exception:  # the YAML parser raises its own
        return text


def _text(value: Any) -> str:
    """A value as Hydra reads it in an override."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(inner)}' for key, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return str(value)
    escaped = value.replace("'", r"\'")
    return f"'{escaped}'"
