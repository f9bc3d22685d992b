"""Where nothing gets on, the stacks of all threads are shown, once for each hang."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from rs_aligner import progress
from rs_aligner.watchdog import watching


def test_a_hang_is_told_with_all_stacks_and_again_only_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def hangs_in_a_judge() -> None:
        over.wait()

    thread = threading.Thread(target=hangs_in_a_judge)
    thread.start()
    progress.enter("scoring", step=7)
    log = tmp_path / "stderr"
    # A file of its own: what is written while `capfd.readouterr` empties its file is lost.
    with log.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with watching(0.2, "rank 3 on a_node"):
            for hang in (1, 2):
                while _hangs(log) < hang:
                    time.sleep(0.01)
                told = _hangs(log)
                time.sleep(0.5)  # the same hang, for longer than the limit
                assert _hangs(log) == told == hang
                progress.note()
        monkeypatch.undo()
    over.set()
    thread.join()
    said = log.read_text()
    assert said.startswith("rank 3 on a_node: nothing has got on for 0 s (scoring, step 7)")
    assert said.count("nothing has got on") == 2
    assert "test_watchdog.py" in said


def _hangs(log: Path) -> int:
    """How many hangs were told whole: the stack of the thread that hangs is in each."""
    return log.read_text().count("in hangs_in_a_judge")
