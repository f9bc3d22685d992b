"""A scored rollout is in its step's folder at once, and comes back if its line is as it was written."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.record import open_step
from rs_aligner.record.ledger_row import Judged, LedgerRow, Stamp, row_of
from rs_aligner.record.open_step import OpenStep, read_open
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure

PROMPT = Prompt("p", "größer \x85", (1, 2), {"answer": 3}, row=7)


def row(index: int) -> LedgerRow:
    rollout = Rollout(2, index, (5, 6), f"answer {index}", "stop", 3, 100 + index, (-0.5, -1.25))
    judged = Judged(rollout, Score(0.5, {"style": 0.25}, "judge", "float16"), ScoreFailure("no idea"))
    return row_of(PROMPT, judged, Stamp(4, "made"))


def read(folder: Path) -> list[LedgerRow]:
    return [replace(found, checksum="") for found in read_open(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "step_000004.open"


def test_a_row_can_be_read_when_append_returns(folder: Path) -> None:
    file = OpenStep(folder, 3)
    for count in range(1, 4):
        file.append(row(count))
        assert read(folder) == [row(index) for index in range(1, count + 1)]
    file.settle()
    assert [path.name for path in folder.iterdir()] == ["replica_03.jsonl"]


def test_rows_of_all_replicas_are_read(folder: Path) -> None:
    for replica in (11, 0):
        file = OpenStep(folder, replica)
        file.append(row(replica))
        file.settle()
    assert read(folder) == [row(0), row(11)]
    assert read_open(folder.with_name("none.open")) == []


def test_a_line_cut_short_at_any_byte_is_dropped_and_written_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OpenStep(folder, 0).append(row(0))
    path = folder / "replica_00.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole + whole[:cut])
        assert read(folder) == [row(0)]
        file = OpenStep(folder, 0)
        file.append(row(1))
        file.settle()
        assert read(folder) == [row(0), row(1)]
    assert not caplog.text


def test_a_bad_line_in_the_middle_is_dropped_with_a_warning_that_names_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = OpenStep(folder, 0)
    for index in range(3):
        file.append(row(index))
    path = folder / "replica_00.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer 1", b"answer 7"))
    assert read(folder) == [row(0), row(2)]
    assert "replica_00.jsonl:2: not a row of a ledger as it was written: its checksum is of" in caplog.text


def test_many_threads_may_write(folder: Path) -> None:
    file = OpenStep(folder, 0)
    threads = [
        threading.Thread(
            target=lambda start: [file.append(row(start + i)) for i in range(20)], args=(100 * n,)
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.settle()
    expected = [row(100 * n + i) for n in range(8) for i in range(20)]
    assert sorted(read(folder), key=lambda one: one.index) == expected


def test_rows_are_on_the_disk_within_a_second_though_no_more_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asserted by an event, and not by a clock."""
    synced, begun = threading.Event(), threading.Event()
    sync = os.fsync

    def fsync(file: int) -> None:
        sync(file)
        if begun.is_set():
            synced.set()

    monkeypatch.setattr(open_step, "SYNC_SECONDS", 0.01)
    monkeypatch.setattr(os, "fsync", fsync)
    file = OpenStep(folder, 0)
    file.append(row(0))
    begun.set()
    file.append(row(1))
    assert synced.wait(timeout=60)


@pytest.mark.parametrize("left", [0, 10])
def test_a_full_disk_is_told_and_nothing_is_written_behind_a_line_cut_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    file = OpenStep(folder, 0)
    file.append(row(0))
    write = os.write

    def full(number: int, data: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        data, left = data[:left], 0
        return write(number, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        file.append(row(1))
    file.append(row(2))
    with pytest.raises(OSError, match="No space left"):
        file.settle()
    assert read(folder) == [row(0)]
    again = OpenStep(folder, 0)
    again.append(row(3))
    assert read(folder) == [row(0), row(3)]
