"""What a run needs of the machine is asked before the work, and what is missing is told in a line."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rs_aligner.record.room import OPEN_FILES, check_open_files, check_room, check_writable


def test_a_folder_is_made_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "run", "the.key")
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes nothing, not even of root; skipped where none can be made."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=16k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_named_with_its_key(read_only: Path) -> None:
    for folder in (read_only, read_only / "run"):
        with pytest.raises(ValueError, match="read-only file system; name another folder") as error:
            check_writable(folder, "exp_manager.explicit_log_dir")
        assert str(error.value).startswith(f"exp_manager.explicit_log_dir={folder} cannot be written: ")


def test_a_folder_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be written: not a directory"):
        check_writable(tmp_path / "file" / "run", "the.key")


def test_room_is_asked_of_the_disk_that_a_folder_will_be_on(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 0)
    with pytest.raises(OSError, match="no space left on device"):
        check_room(tmp_path / "not" / "there", 1 << 60)


def test_the_limit_of_open_files_is_raised_where_it_may_be_and_told_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [64, 1 << 20]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: limits.__setitem__(0, wanted[0]))
    check_open_files()
    assert limits[0] >= OPEN_FILES
    limits[:] = [64, 128]
    with pytest.raises(ValueError, match="only 128 open files are allowed here"):
        check_open_files()
    assert limits[0] == 128
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    check_open_files()
