"""Where a loop stands, by itself; what loops make of it is in `test_rs.py`, `test_sft.py` and others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rs_aligner.trainers.pace import is_due, resume


@pytest.mark.parametrize(
    ("interval", "due"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5]), (7, []), (None, [])]
)
def test_what_is_done_every_so_many_steps(interval: int | None, due: list[int]) -> None:
    assert [step for step in range(1, 7) if is_due(step, interval)] == due


def test_a_new_run_has_made_no_step_not_even_that_before_the_first() -> None:
    nobody = cast(Any, None)
    assert resume(cast(Any, SimpleNamespace(last_checkpoint=None)), nobody, nobody) == {"step": -1}


def test_a_run_goes_on_with_the_counters_of_its_checkpoint_and_its_prompts_where_they_were() -> None:
    counters = {"step": 7, "sampler": {"epoch": 2}, "held_out": {}}
    trainee, loaded = SimpleNamespace(load={Path("step_7"): counters}.__getitem__), []
    sampler = SimpleNamespace(load_state_dict=loaded.append)
    run = SimpleNamespace(last_checkpoint=Path("step_7"))
    assert resume(cast(Any, run), cast(Any, trainee), cast(Any, sampler)) == counters
    assert loaded == [{"epoch": 2}]
