"""Each leaf of each command's config does what a user sets it for: see `leaf_table.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rs_aligner.config import (
    GenerateConfig,
    ModelConfig,
    ObjectiveConfig,
    RSConfig,
    ServeRewardConfig,
    ServeRolloutsConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
)
from rs_aligner.config.base import Section
from rs_aligner.config.keys import Leaf, leaves
from tests.config.conftest import compose
from tests.config.leaf_reads import READS
from tests.config.leaf_rows import Row, tree_of
from tests.config.leaf_table import TABLE
from tests.config.leaf_world import look, make_place

SCHEMAS: dict[str, type[Section]] = {
    "train_rs": TrainRSConfig,
    "train_sft": TrainSFTConfig,
    "train_reward_model": TrainRewardModelConfig,
    "generate": GenerateConfig,
    "serve_reward": ServeRewardConfig,
    "serve_rollouts": ServeRolloutsConfig,
}
ONLY_CHECKED = {
    "model.precision",  # another name of trainer.precision, and held to it
    "model.peft.lora_tuning.adapter_dropout",  # 0, or an error
    "overwrite",  # whether a file that is there is an error
    "watched_rm.max_failed_fraction",  # of all judges, but without effect for this one
}
"""Leaves that only the checks of the config read."""


QUICKEST = ("serve_rollouts", "serve_reward", "generate", "train_sft", "train_reward_model", "train_rs")


def marks(command: str, key: str) -> list[pytest.MarkDecorator]:
    """What several judges or commands have is shown by one and the quickest command, in the fast part."""
    first = next(one for one in QUICKEST if key in TABLE[one][1])
    return [pytest.mark.slow] if command != first or key.startswith("watched_rm.") else []


ROWS = [
    pytest.param(command, key, row, id=f"{command}-{key}", marks=marks(command, key))
    for command, (_, rows) in TABLE.items()
    for key, row in rows.items()
]


def leaves_of(command: str) -> dict[str, Leaf]:
    """All leaves of a command's config, by their keys."""
    return {leaf.key: leaf for leaf in leaves(SCHEMAS[command])}


@pytest.mark.parametrize("command", TABLE)
def test_every_leaf_has_a_row_and_every_row_is_a_leafs(command: str) -> None:
    there, told = set(leaves_of(command)), set(TABLE[command][1])
    missing, gone = sorted(there - told), sorted(told - there)
    assert not missing, (
        f"{command}: nothing shows what these keys do: {', '.join(missing)}. For each of them add a row to "
        "tests/config/leaf_table.py: a value that a user might set, and the note that shows its effect"
    )
    assert not gone, f"{command}: take the rows of keys that are gone out of leaf_table.py: {', '.join(gone)}"


@pytest.mark.parametrize("command", TABLE)
def test_the_yaml_file_has_every_key_of_the_schema_and_no_other(command: str) -> None:
    def written(node: Any, prefix: str = "") -> Iterator[str]:
        for key in node:
            value = node._get_node(key)
            if OmegaConf.is_dict(value) and prefix + key not in plain and len(value):
                yield from written(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    everything = set(leaves_of(command))
    plain = {leaf for leaf in everything if "[" not in leaf and "*" not in leaf}
    in_file = set(written(compose(command, [])))
    # A section that is null or empty stands for all that is below it.
    closed = {key for key in in_file - plain if any(leaf.startswith(f"{key}.") for leaf in everything)}
    assert in_file - plain - closed <= {"model.data.data_prefix.test"}  # accepted, without effect
    assert not {leaf for leaf in plain - in_file if not any(leaf.startswith(f"{key}.") for key in closed)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_place(folder)
    return folder


@pytest.fixture(scope="module")
def noted(place: Path):
    """What a command notes with so many keys set, each of them once."""

    @cache
    def run(command: str, keys: tuple[tuple[str, str], ...], again: bool, ranks: int) -> Mapping[str, Any]:
        tree = tree_of(_SETTINGS[keys])
        notes = look(command, tree, place, ranks=ranks)
        return look(command, tree, place, ranks=ranks, again=True) if again else notes

    def go(command: str, settings: dict[str, Any], row: Row) -> Mapping[str, Any]:
        keys = tuple((key, repr(value)) for key, value in settings.items())
        _SETTINGS[keys] = settings
        return run(command, keys, row.again, row.ranks)

    return go


_SETTINGS: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}


@pytest.mark.parametrize(("command", "key", "row"), ROWS)
def test_a_leaf_has_the_effect_that_its_row_says(command: str, key: str, row: Row, noted: Any) -> None:
    base = {**TABLE[command][0], **{name.removeprefix("/"): value for name, value in row.given.items()}}
    also = {name.removeprefix("/"): value for name, value in row.also.items()}
    without = noted(command, base, row)
    with_it = noted(command, {**base, row.at or key: row.value, **also}, row)
    if row.shows != "error":
        assert not _failed(without), f"the row's `given` cannot run: {without}"
        assert not _failed(with_it), f"what the row sets cannot run: {with_it}"
    assert with_it.get(row.shows) != without.get(row.shows), (
        f"{row.at or key} = {row.value!r} changes nothing of {row.shows!r}: {without.get(row.shows)}"
    )
    assert is_read(leaves_of(command)[key], without, with_it) or key in ONLY_CHECKED, f"no code reads {key}"


def is_read(leaf: Leaf, *runs: Mapping[str, Any]) -> bool:
    """Whether the code, checks apart, has read a leaf; the kind of a list's element is read with the list."""
    return leaf.key.endswith("].name") or any((leaf.section, leaf.name) in notes[READS] for notes in runs)


def test_a_key_that_no_code_reads_is_told_from_one_that_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it is written down with its whole section, so that setting it seems to have an effect."""
    monkeypatch.setattr("rs_aligner.cli.scripts.TrainRSConfig", _WithInvented)
    without, with_it = (
        look("train_rs", tree_of({**TABLE["train_rs"][0], "model.rs.objective.invented": number}), place)
        for number in (1, 2)
    )
    assert not _failed(with_it)
    assert without["objective"] != with_it["objective"]
    of_objective = {leaf.name: leaf for leaf in leaves(_Objective)}
    assert is_read(of_objective["kl"], with_it)
    assert not is_read(of_objective["invented"], without, with_it)


class _Objective(ObjectiveConfig):
    invented: int = 1


class _RS(RSConfig):
    objective: _Objective = _Objective()


class _Model(ModelConfig):
    rs: _RS = _RS()


class _WithInvented(TrainRSConfig):
    model: _Model


def _failed(notes: Mapping[str, Any]) -> bool:
    """Whether a command ended with an error; a run that stopped for its time limit did not."""
    statuses = [status for status in notes.get("status", []) if status != "(75,)"]
    return any(notes["error"] != ["('',)"] or status != "(0,)" for status in statuses)


@pytest.mark.parametrize("command", TABLE)
def test_a_command_that_runs_twice_notes_the_same(command: str, place: Path) -> None:
    """Else a difference would show nothing."""
    tree = tree_of(TABLE[command][0])
    first = look(command, tree, place)
    assert not _failed(first), first
    assert look(command, tree, place) == first
