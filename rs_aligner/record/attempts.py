"""The starts of a run: with what each went to work, and whether the next one may go on with that.

    config/attempt_01.yaml    settings, versions of packages, fingerprints, when and by which command
    config/attempt_02.yaml

A start is compared with the one before it. What changes neither rollouts nor training goes on, told in a
line. What would mix two runs stops, with all of it listed, unless `exp_manager.allow_changes` names it; then
it is in the attempt's file. Versions of packages and the decoder's kernels are told and stop nothing: a run
may have to go on with what the machine has.

Left out on purpose: which keys decide what (`config/changes.py`), and how fingerprints are made, which needs
the model and the judges (`commands/attempt.py`).
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import yaml

from rs_aligner import __version__
from rs_aligner.config.base import ConfigError
from rs_aligner.config.changes import PARTS, STOPS, Difference, Kind, differences, is_named, kind_of
from rs_aligner.files import checksum, make_folder, write_whole
from rs_aligner.record.sealed import seal, unseal

_logger = logging.getLogger("rs_aligner")

_NAME = re.compile(r"attempt_(\d{2,})\.yaml")
_PACKAGES = (
    *("torch", "megatron-core", "transformers", "tokenizers", "safetensors", "numpy", "nvidia-pytriton"),
    *("math-verify", "nemo-toolkit", "omegaconf", "hydra-core", "pydantic"),
)
# In C where PyYAML has it, which is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
ALL = "all"
"""In `exp_manager.allow_changes`: whatever it is."""
_ALLOW = "exp_manager.allow_changes"


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3])), "rs_aligner": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class ChangedSettings(ConfigError):
    """A start would go on with a run that was made under other settings."""


@dataclass(frozen=True)
class Attempt:
    """With what a run goes to work.

    Attributes:
        settings: all leaves of the config, by `config.changes.settings_of`.
        found: fingerprints of what was found where settings point to, by the names of `config.changes.PARTS`.
        seen: what is told when it changes, and stops nothing: the decoder, its kernels.
        planned: numbers that follow from the length of the run: steps, optimizer steps of the schedule.
        versions: of Python and packages.
        number: which start, counted from 1; 0 where it is none yet.
        started: when, for people.
        command: the command line.
        allowed: the keys that were let change.
        given: the config as it was given.
    """

    settings: dict[str, Any]
    found: dict[str, str]
    seen: dict[str, str] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_versions)
    number: int = 0
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    command: str = field(default_factory=lambda: shlex.join(sys.orig_argv))
    allowed: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def of_rollouts(self) -> str:
        """Fingerprint of what decides rollouts and scores, the weights apart."""
        return self._fingerprint(Kind.SAMPLED)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what decides rollouts and scores, and of what the weights are trained by."""
        return f"{self.of_rollouts}-{self._fingerprint(Kind.LEARNT, self.planned)}"

    def _fingerprint(self, kind: Kind, *more: Any) -> str:
        settings = {key: value for key, value in self.settings.items() if kind_of(key) is kind}
        found = {name: one for name, one in self.found.items() if PARTS[name].kind is kind}
        return checksum(json.dumps([settings, found, *more], sort_keys=True).encode())

    def write(self, folder: Path) -> None:
        """Write the attempt's file, whole.

        Args:
            folder: for the files of all attempts; it is made.
        """
        make_folder(folder)
        content = yaml.dump(seal(asdict(self)), Dumper=_DUMPER, sort_keys=False, width=110)
        write_whole(folder / f"attempt_{self.number:02d}.yaml", [content.encode()])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an attempt's file.

        Raises:
            ValueError: it cannot be read, or is not as it was written.
        """
        try:
            record = unseal(yaml.load(path.read_bytes(), _LOADER))
            if set(record) != {one.name for one in fields(cls)} or set(record["found"]) - set(PARTS):
                raise ValueError("it has other keys than this version knows")
            return cls(**record)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{path} cannot be read: {why}. It tells with what the run was made: put a good copy back, "
                "or start in another folder. Without the file a start is compared with the one before it"
            ) from None


def sampled_alike(one: str, other: str) -> bool:
    """Whether two fingerprints of attempts have the rollouts' part in common."""
    return one.partition("-")[0] == other.partition("-")[0]


def attempt_files(folder: Path) -> list[Path]:
    """The files of the attempts in a folder, the oldest first."""
    numbers = [(int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbers)]


def latest(folder: Path, allow: Sequence[str]) -> Attempt | None:
    """The newest attempt whose file is in a folder.

    Returns:
        None where there is none and `allow` lets everything change.

    Raises:
        ValueError: its file cannot be read, or is missing.
    """
    files = attempt_files(folder)
    if files:
        return Attempt.read(files[-1])
    missing = f"{folder} has no attempt_01.yaml nor a later one, so that nobody knows how the run was made"
    if ALL not in allow:
        raise ValueError(
            f"{missing}: put the newest back, start in another folder, or let everything change, "
            f"{_ALLOW}=[{ALL}]"
        )
    _logger.warning("%s: %s=[%s] goes on all the same", missing, _ALLOW, ALL)
    return None


def compare(old: Attempt, new: Attempt, folder: Path, allow: Sequence[str]) -> list[str]:
    """See whether a run may go on with other settings; tell what is different.

    Args:
        old: the attempt before.
        new: with what it is to go on.
        folder: of the run, for the message.
        allow: `exp_manager.allow_changes`.

    Returns:
        The keys that were let change.

    Raises:
        ChangedSettings: what would mix two runs, a line for each, and how to allow it.
    """
    changed = differences(old.settings, new.settings)
    stops = {one.key: _shown(one) for one in changed if one.kind in STOPS}
    for name in sorted(old.found.keys() | new.found.keys()):
        part = PARTS[name]
        before, now = old.found.get(name, "nothing"), new.found.get(name, "nothing")
        if before != now:
            causes = part.causes(changed)
            stops[part.key] = f"{part.key}: {part.name}: {before} -> {now}{_by(causes, part.key)}"
    told = [_shown(one) for one in changed if one.kind in (Kind.FREE, Kind.PLACE) and one.key not in stops]
    if told:
        _logger.info("other than at attempt %d, and harmless: %s", old.number, "; ".join(told))
    _tell_length(old, new, [one for one in changed if one.kind is Kind.LENGTH])
    _tell_machine(old, new)
    refused = [key for key in stops if not is_named(key, allow) and ALL not in allow]
    if refused:
        hint = ""
        if old.versions.get("rs_aligner") != new.versions.get("rs_aligner"):
            hint = " (rs_aligner is another version, which the fingerprints of its judges contain)"
        raise ChangedSettings(
            [
                f"exp_manager.explicit_log_dir={folder}: attempt {old.number} of this run had other settings "
                f"(config/attempt_{old.number:02d}.yaml), and going on would mix two runs{hint}:",
                *(f"  {stops[key]}" for key in refused),
                "set them back, choose another folder, or let them change: "
                f"{_ALLOW}=[{','.join([*allow, *refused])}]",
            ]
        )
    for line in stops.values():
        _logger.warning("%s lets this change: %s", _ALLOW, line)
    return list(stops)


def _shown(one: Difference) -> str:
    return f"{one.key}: {_value(one.old)} -> {_value(one.new)}"


def _value(value: Any, most: int = 60) -> str:
    text = value if value == "set" else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _by(causes: Sequence[Difference], key: str) -> str:
    """The keys behind something else that was found."""
    if not causes:
        return " (under the same name)"
    return f" ({'; '.join(_shown(one).removeprefix(f'{key}: ') for one in causes)})"


def _tell_length(old: Attempt, new: Attempt, changed: Sequence[Difference]) -> None:
    if not changed:
        return
    before, now = old.planned.get("optimizer_steps"), new.planned.get("optimizer_steps")
    moved = "the learning rate's course stays"
    if before != now:
        moved = f"from here on the learning rate's course is of {now} optimizer steps, and was of {before}"
    _logger.info("the run's length is another one: %s; %s", "; ".join(map(_shown, changed)), moved)


def _tell_machine(old: Attempt, new: Attempt) -> None:
    """Warn of packages, and of what decodes: equal bits are not promised then."""
    for what, before, now in (
        ("packages have other versions", old.versions, new.versions),
        ("it decodes otherwise, so last bits may differ", old.seen, new.seen),
    ):
        other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if other:
            lines = (f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}" for name in other)
            _logger.warning("since attempt %d %s: %s", old.number, what, "; ".join(lines))
