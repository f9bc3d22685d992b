"""Whose scratch folders are removed, and what a server leaves for others to read: nothing."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path

import psutil
import pytest

from rs_aligner.reward.server.scratch import private_files, remove_shared_memory, scratch_folder

DEAD = 4_190_000  # above what Linux hands out on machines of any size that tests run on


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /dev/shm; temporary files lie beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr("rs_aligner.reward.server.scratch._SHARED_MEMORY", folder)
    return folder


def leave_behind(temporary: Path, pid: int, started: float = 1.0) -> Path:
    """What a killed server leaves."""
    folder = temporary / f"rs_judge_{pid}_abc"
    folder.mkdir()
    (folder / "lock").write_text(f"{started}\n")
    (temporary / "shm" / f"pytrtion{pid}-abc").touch()
    return folder


@pytest.mark.parametrize(
    "name", ["rs_judge_foo", "rs_judge_", "rs_judge_x_y", "rs_judge_7", f"rs_judge_{'9' * 40}_a"]
)
def test_a_strangers_folder_stops_no_server_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / name / "lock")  # opening it would wait for ever
    with scratch_folder():
        pass
    assert (tmp_path / name).is_dir()


def test_a_file_and_a_link_of_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / f"rs_judge_{DEAD}_file").touch()
    left = leave_behind(tmp_path, DEAD + 1)
    (tmp_path / "elsewhere").mkdir()
    left.rename(tmp_path / "elsewhere" / "folder")
    left.symlink_to(tmp_path / "elsewhere" / "folder")
    with scratch_folder():
        pass
    assert (tmp_path / f"rs_judge_{DEAD}_file").is_file()
    assert left.is_symlink()
    assert (tmp_path / "elsewhere" / "folder" / "lock").is_file()


def test_what_a_killed_server_of_this_user_left_is_removed(tmp_path: Path, shared_memory: Path) -> None:
    left = leave_behind(tmp_path, DEAD)
    with scratch_folder() as ours:
        assert not left.exists()
        assert list(shared_memory.iterdir()) == []
        assert ours.is_dir()
    assert not ours.exists()


def test_what_another_users_server_left_is_let_alone(
    tmp_path: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, user = leave_behind(tmp_path, DEAD), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with scratch_folder():
        pass
    remove_shared_memory(DEAD)
    assert left.is_dir()
    assert len(list(shared_memory.iterdir())) == 1


def test_a_server_that_lives_keeps_its_folder(tmp_path: Path, shared_memory: Path) -> None:
    left = leave_behind(tmp_path, os.getpid(), psutil.Process().create_time())
    with scratch_folder():
        assert left.is_dir()  # by its process
    held = leave_behind(tmp_path, DEAD)
    with (held / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder():
            assert held.is_dir()  # by its lock: its process may be of another container
    assert len(list(shared_memory.iterdir())) == 2


def test_a_number_that_another_process_has_by_now_does_not_keep_a_folder(
    tmp_path: Path, shared_memory: Path
) -> None:
    left = leave_behind(tmp_path, os.getpid(), started=1.0)
    old, new = shared_memory / f"pytrtion{os.getpid()}-old", shared_memory / f"pytrtion{os.getpid()}-abc"
    old.touch()
    os.utime(old, (1.0, 1.0))
    with scratch_folder():
        assert not left.exists()
    assert not old.exists()
    assert new.exists()  # made since that process began: its own


def test_nobody_else_can_read_what_is_created(tmp_path: Path) -> None:
    with scratch_folder() as folder, private_files():
        (tmp_path / "region").touch()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "region").stat().st_mode) == 0o600
        before = os.umask(0o077)
    assert before == 0o077
    assert os.umask(0o022) == 0o022  # of what else the process writes: as it was
