"""A run that is started again with something else: what would mix two runs is refused, the rest goes on.

The command is the real one, in the world of `tests/config/leaf_world.py`, where a run takes a moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.leaf_rows import tree_of
from tests.config.leaf_table import TABLE
from tests.config.leaf_world import look, make_place

BASE = {**TABLE["train_rs"][0], "trainer.rs.max_epochs": 1}


@pytest.fixture(scope="module")
def after_a_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A place with a run in it, and a copy of all that is there."""
    folder = tmp_path_factory.mktemp("changed")
    make_place(folder / "place")
    notes = look("train_rs", tree_of(BASE), folder / "place")
    assert "status" not in notes or notes["status"] == ["(0,)"], notes["error"]
    return folder / "place", shutil.copytree(folder / "place", folder / "copy")


@pytest.fixture
def place(after_a_run: tuple[Path, Path]) -> Path:
    """As the run has left it, whatever the tests before have made of it."""
    place, copy = after_a_run
    shutil.rmtree(place)
    return shutil.copytree(copy, place)


def again(place: Path, **changes: Any) -> tuple[bool, str]:
    """Whether the second start is refused, and what it says."""
    settings = {**BASE, **{key.replace("__", "."): value for key, value in changes.items()}}
    notes = look("train_rs", tree_of(settings), place, again=True)
    return "(2,)" in notes.get("status", []), str(notes["error"])


def same_size(place: Path) -> None:
    """Other prompts in the same file, as many as before."""
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    rows[0]["right"] = "another answer"
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_weights(place: Path) -> None:
    """A bit of the tokenizer's or the model's files is another one."""
    config = place / "policy" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-4}))


@pytest.mark.parametrize(
    ("changes", "files", "key"),
    [
        ({}, other_weights, "pretrained_checkpoint.restore_from_path"),
        ({}, same_size, "model.data.data_prefix.train"),
        ({"model__data__data_prefix__train": "@/more.jsonl"}, None, "model.data.data_prefix.train"),
        ({"model__rs__sampling_params__temperature": 0.5}, None, "model.rs.sampling_params.temperature"),
        ({"model__optim__lr": 1e-3}, None, "model.optim.lr"),
        ({"trainer__precision": "bf16"}, None, "trainer.precision"),
        ({"model__rs__objective__kl": 0.1}, None, "model.rs.objective.kl"),
    ],
)
def test_what_would_mix_two_runs_is_refused_with_its_key(
    place: Path, changes: dict[str, Any], files: Callable[[Path], None] | None, key: str
) -> None:
    before = (place / "out" / "run" / "config.yaml").read_bytes()
    if files is not None:
        files(place)
    refused, told = again(place, **changes)
    assert refused, told
    assert f"exp_manager.allow_changes=[{key}]" in told
    assert (place / "out" / "run" / "config.yaml").read_bytes() == before
    assert not (place / "out" / "run" / "config" / "attempt_02.yaml").exists()
    refused, told = again(place, **changes, exp_manager__allow_changes=[key])
    assert not refused, told
    assert (place / "out" / "run" / "config" / "attempt_02.yaml").exists()


def test_what_mixes_nothing_goes_on(place: Path) -> None:
    (place / "policy").rename(place / "moved")
    (place / "prompts.jsonl").rename(place / "elsewhere.jsonl")
    refused, told = again(
        place,
        pretrained_checkpoint__restore_from_path="@/moved",
        model__data__data_prefix__train="@/elsewhere.jsonl",
        trainer__rs__max_epochs=2,
        trainer__rs__save_interval=1,
        exp_manager__name="another",
        remote_rm__request_timeout=5,
    )
    assert not refused, told
