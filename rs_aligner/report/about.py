"""What a run was made with: settings other than the defaults, starts, versions, fingerprints, how it ended.

Left out on purpose: all settings, which are in `config/` of the run's folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rs_aligner.config import TrainRewardModelConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.config.base import Section
from rs_aligner.config.changes import differences, settings_of
from rs_aligner.record.attempts import Attempt
from rs_aligner.record.status import BEAT_SECONDS
from rs_aligner.report.run_data import RunData, RunKind

_SCHEMAS: dict[RunKind, type[Section]] = {
    "train_rs": TrainRSConfig,
    "train_sft": TrainSFTConfig,
    "train_reward_model": TrainRewardModelConfig,
}
_MUST: dict[str, Any] = {
    "exp_manager": {"explicit_log_dir": "?"},
    "pretrained_checkpoint": {"restore_from_path": "?"},
    "model": {"data": {"data_prefix": {"train": "?"}}},
}
_LONGEST = 200  # characters of a value


@dataclass(frozen=True)
class Setting:
    """A key with another value than by default."""

    key: str
    value: str
    default: str


@dataclass(frozen=True)
class About:
    """What a run was made with.

    Attributes:
        settings: of the newest start, where they are not as by default.
        attempts: its starts, the oldest first.
        ended: whether it is over, and how, as a sentence.
        is_over: whether it is.
        problem: what cannot be read of it; empty for nothing.
    """

    settings: tuple[Setting, ...]
    attempts: tuple[Attempt, ...]
    ended: str
    is_over: bool
    problem: str = ""

    @property
    def latest(self) -> Attempt | None:
        """The newest start; None where none has begun to write."""
        return self.attempts[-1] if self.attempts else None

    def setting(self, key: str) -> Any:
        """A setting of the newest start; None where nobody knows."""
        return None if self.latest is None else self.latest.settings.get(key)


def about(run: RunData) -> About:
    """What a run was made with; what cannot be read is told, and not more."""
    problem = ""
    attempts: tuple[Attempt, ...] = ()
    try:
        attempts = tuple(run.attempts())
    except ValueError as error:
        problem = str(error)
    ended, is_over = how_it_ended(run.status())
    settings = settings_set(run.kind, attempts[-1].settings) if attempts else ()
    return About(settings, attempts, ended, is_over, problem)


def settings_set(kind: RunKind, settings: Mapping[str, Any]) -> tuple[Setting, ...]:
    """The settings that are not as they are where nobody sets them."""
    default = settings_of(_SCHEMAS[kind].model_validate(_MUST))
    found = []
    for one in differences(default, settings):
        if "set" in (one.old, one.new):  # a section that is null otherwise
            keys = [key for key in settings if key.startswith(f"{one.key}.")]
            found += [Setting(key, _shown(settings[key]), "no such section") for key in sorted(keys)]
        else:
            found.append(
                Setting(
                    one.key, _shown(one.new), "must be set" if one.old in ("?", ["?"]) else _shown(one.old)
                )
            )
    return tuple(found)


def how_it_ended(status: Mapping[str, Any]) -> tuple[str, bool]:
    """What `status.json` says, as a sentence, and whether the run is over."""
    state, reason = status.get("state"), status.get("reason")
    step, steps = status.get("step"), status.get("steps")
    where = f" in step {step} of {steps}" if step and steps else ""
    if state is None:
        return "Nothing says what the run is doing: it has no status.json.", False
    if state == "finished":
        made = f", with {steps} {'step' if steps == 1 else 'steps'}" if steps else ""
        return f"It finished{made}.", True
    if state == "stopped":
        return f"It was stopped{where} and can be gone on with: {reason or 'nobody said why'}.", True
    if state == "failed":
        return f"It failed{where}: {reason or 'nobody said why'}.", True
    since = time.time() - float(status.get("heartbeat", 0))
    if since > 6 * BEAT_SECONDS:
        return (
            f"It was {state}{where} when it was last heard of, {round(since / 60)} minutes before this page.",
            False,
        )
    return f"It goes on: {state}{where}.", False


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."
