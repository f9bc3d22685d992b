"""`status.json`: whole at every look, up to date, and right about how a run ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rs_aligner import progress
from rs_aligner.config import ExpManagerConfig
from rs_aligner.record.run import Run
from rs_aligner.record.status import Status, read_status
from rs_aligner.stopping import Stopped


def wait_for(folder: Path, **wanted: Any) -> dict[str, Any]:
    """Look until the file says so; the test's own time limit ends it otherwise."""
    while True:
        status = read_status(folder)
        if wanted.items() <= status.items():
            return status
        time.sleep(0.01)


def test_it_says_where_the_run_is_and_who_it_is(tmp_path: Path) -> None:
    status = Status(tmp_path)
    wait_for(tmp_path, state="starting", step=0, steps=None, attempt=1, pid=os.getpid())
    progress.enter("sampling", step=3, steps=10)
    progress.enter("scoring")
    found = wait_for(tmp_path, state="scoring", step=3, steps=10)
    assert found["started"] <= found["got_on"] <= found["heartbeat"]
    status.end(None)
    assert {"state": "finished", "reason": None}.items() <= read_status(tmp_path).items()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_heart_beats_where_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT_SECONDS", "LEAST_SECONDS"):
        monkeypatch.setattr(f"rs_aligner.record.status.{name}", 0.05)
    status = Status(tmp_path)
    first = wait_for(tmp_path, state="starting")
    while read_status(tmp_path)["heartbeat"] == first["heartbeat"]:
        time.sleep(0.01)
    status.end(None)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Stopped("SIGTERM"), "stopped", "SIGTERM"),
        (ValueError("model.seed is -1"), "failed", "model.seed is -1"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
    ],
)
def test_how_a_run_ended_and_why(error: BaseException, state: str, reason: str, tmp_path: Path) -> None:
    config = ExpManagerConfig.model_validate({"explicit_log_dir": str(tmp_path / "run")})
    for attempt in (1, 2):
        with pytest.raises(type(error)), Run(config, is_first=True):
            raise error
        found = read_status(tmp_path / "run")
        assert (found["state"], found["reason"], found["attempt"]) == (state, reason, attempt)
    with Run(config, is_first=False):
        pass
    assert read_status(tmp_path / "run") == found  # the other ranks write nothing


def test_nothing_is_written_into_a_folder_that_is_somebody_elses(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("somebody else has the folder")

    Status(tmp_path, refuse).end(None)
    assert not list(tmp_path.iterdir())


_NO_ROOM = """
import pathlib, resource, sys
from rs_aligner.record.status import Status
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
Status(pathlib.Path(sys.argv[1])).end(None)
"""


@pytest.mark.timeout(60)
def test_a_disk_without_room_leaves_no_half_of_it_and_does_not_end_the_run(tmp_path: Path) -> None:
    """The system itself refuses to write, as where a disk is full, in a process of its own."""
    (tmp_path / "status.json").write_text("{}")
    subprocess.run([sys.executable, "-c", _NO_ROOM, str(tmp_path)], check=True, timeout=50)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("status.json", "{}")]
