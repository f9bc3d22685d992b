"""When a program's time begins: it is not the program's fault that a busy machine takes long to start it."""

from __future__ import annotations

import pytest

from rs_aligner.sandbox import Job, Limits, Sandbox

pytestmark = pytest.mark.timeout(60)


def test_a_programs_time_begins_when_it_is_ready() -> None:
    box = Sandbox(Limits(), slots=1)
    try:
        with box.slot() as slot:
            # Less than its process takes to bind itself.
            (end,) = box.run(slot, [Job("script", {"program": "while True: pass"})], 0.0001)
        assert end.is_late
        with box.slot() as slot:
            (end,) = box.run(slot, [Job("script", {"program": "x = 1"})], 20.0)
        assert (end.status, end.is_late, box.num_starts) == (0, False, 1)
    finally:
        box.close()
