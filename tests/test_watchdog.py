"""Where nothing gets on, the stacks of all threads are shown, once for each hang."""

from __future__ import annotations

import threading

import pytest

from rs_aligner import progress
from rs_aligner.watchdog import watching


def test_a_hang_is_told_with_all_stacks_and_again_only_for_another(capfd: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()

    def hangs_in_a_judge() -> None:
        over.wait()

    thread = threading.Thread(target=hangs_in_a_judge)
    thread.start()
    progress.enter("scoring", step=7)
    said = ""
    with watching(0.2, "rank 3 on a_node"):
        for hang in (1, 2):
            while said.count("nothing has got on") < hang or said.count("in hangs_in_a_judge") < hang:
                said += capfd.readouterr().err
            progress.note()
    over.set()
    thread.join()
    assert said.startswith("rank 3 on a_node: nothing has got on for 0 s (scoring, step 7)")
    assert "test_watchdog.py" in said
