"""What a run's folder is, and whether a run may begin or go on there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rs_aligner import __version__
from rs_aligner.config import ExpManagerConfig
from rs_aligner.record.attempts import Attempt
from rs_aligner.record.format import FORMAT
from rs_aligner.record.run import Run
from rs_aligner.record.sealed import seal
from tests.record.test_attempts import attempt


class Policy:
    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        folder.mkdir(parents=True)


def start(folder: Path, command: str = "train_rs", *, resume: bool = True) -> Run:
    config = {"explicit_log_dir": str(folder), "resume_if_exists": resume}
    return Run(ExpManagerConfig.model_validate(config), is_first=True, command=command)


def work(run: Run, *, saves: bool, of: Attempt | None = None) -> None:
    """A step with its figures and rollouts, and perhaps a checkpoint."""
    with run:
        run.prepare(of or attempt())
        run.open(-1)
        run.record({"step": 1, "loss": 1.0})
        (run.folder / "rollouts" / "step_000001.jsonl").write_text("{}\n")
        if saves:
            run.save(Policy(), 1, {})


def files(folder: Path) -> dict[str, bytes]:
    """All but `status.json`, which says of every start how it ended."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "status.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def refused(run: Run) -> str:
    """The one line with which a start is refused; it changes nothing."""
    before = files(run.folder)
    with pytest.raises(ValueError, match=re.escape(str(run.folder))) as error, run:
        pass
    assert files(run.folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_says_its_format_and_which_checkpoint_was_written_last(tmp_path: Path) -> None:
    work(start(tmp_path), saves=True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert {key: record[key] for key in ("format", "command", "saved", "attempts", "rs_aligner")} == {
        "format": FORMAT,
        "command": "train_rs",
        "saved": 1,
        "attempts": 1,
        "rs_aligner": __version__,
    }
    assert (tmp_path / "config" / "attempt_01.yaml").is_file()


def test_a_run_that_has_lost_its_checkpoints_is_refused_with_the_ways_on(tmp_path: Path) -> None:
    work(start(tmp_path), saves=True)
    (tmp_path / "checkpoints" / "step_000001").rename(tmp_path / "checkpoints" / "step_000001.broken")
    assert "step_000001 was written, and only step_000001.broken is there" in refused(start(tmp_path))
    (tmp_path / "checkpoints" / "step_000001.broken").rmdir()
    (tmp_path / "checkpoints").rmdir()
    told = refused(start(tmp_path))
    assert (
        "has lost its checkpoints: step_000001 was written, and none is there. Put checkpoints/ back" in told
    )
    assert (
        "start in another folder, or remove metrics.jsonl and rollouts/ and run.json there yourself" in told
    )


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on(tmp_path: Path) -> None:
    work(start(tmp_path), saves=False)
    with start(tmp_path) as run:
        run.prepare(attempt())
        run.open(-1)
    assert json.loads((tmp_path / "run.json").read_text())["attempts"] == 2


def test_a_run_that_may_not_be_gone_on_with_is_refused_before_its_first_checkpoint_too(
    tmp_path: Path,
) -> None:
    work(start(tmp_path), saves=False)
    told = refused(start(tmp_path, resume=False))
    assert "has metrics.jsonl and rollouts/ of an earlier start" in told
    assert "resume_if_exists is false" in told


@pytest.mark.parametrize(
    "written", [{"format": FORMAT + 1, "rs_aligner": "9.9.9", "what": "we cannot know"}, {}]
)
def test_another_format_is_refused_by_name(tmp_path: Path, written: dict[str, Any]) -> None:
    work(start(tmp_path), saves=True)
    record = written or seal({"format": 0, "rs_aligner": "9.9.9"})
    (tmp_path / "run.json").write_text(json.dumps(record))
    told = refused(start(tmp_path))
    assert f"has format {record['format']}, written by rs_aligner 9.9.9, and this is {__version__}" in told


def test_a_folder_of_the_time_before_formats_is_refused_and_so_is_one_without_its_record(
    tmp_path: Path,
) -> None:
    work(start(tmp_path), saves=True)
    (tmp_path / "run.json").unlink()
    assert "run.json is missing: put it back" in refused(start(tmp_path))
    (tmp_path / "config" / "attempt_01.yaml").unlink()
    (tmp_path / "config").rmdir()
    told = refused(start(tmp_path))
    assert "has metrics.jsonl and rollouts/ and no run.json: an earlier rs_aligner made it" in told


def test_a_folder_with_files_of_the_users_own_is_as_good_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("model: {}")
    (tmp_path / "rollouts").mkdir()
    work(start(tmp_path), saves=True)


def test_a_run_of_one_command_is_no_run_of_another(tmp_path: Path) -> None:
    work(start(tmp_path), saves=True)
    assert "is a run of train_rs.py, not of train_sft.py" in refused(start(tmp_path, "train_sft"))


def test_a_start_that_changes_what_would_mix_writes_nothing(tmp_path: Path) -> None:
    work(start(tmp_path), saves=False)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="would mix two runs"), start(tmp_path) as run:
        run.prepare(attempt({"model.optim.lr": 1.0}))
    assert files(tmp_path) == before


def test_settings_of_a_start_that_left_nothing_may_change(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.prepare(attempt())
        run.open(-1)
    with start(tmp_path) as run:
        run.prepare(attempt({"model.optim.lr": 1.0}))
        run.open(-1)
    with start(tmp_path) as run:
        run.prepare(replace(attempt({"model.optim.lr": 1.0})))
