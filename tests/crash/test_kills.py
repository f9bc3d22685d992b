"""A run that is killed anywhere and started again: the same bits in the end, and nothing judged twice.

The short form; `benchmarks/kills.py` kills at every point, at random instants, and on several ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.kill_points import IN_CI, OPEN_STEPS, POINTS
from tests.crash.points import Point
from tests.crash.scene import Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("kills"), "pool") as found:
        yield found


def test_the_points_of_the_short_form_are_there() -> None:
    assert {point.name for point in POINTS} >= set(IN_CI)


@pytest.mark.parametrize("point", [point for point in POINTS if point.name in IN_CI], ids=lambda p: p.name)
def test_a_run_that_is_killed_ends_with_the_same_bits_and_nothing_is_judged_twice(
    pool: Scene, point: Point, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert pool.attempt(run, point=point) == -9, pool.said(run)
    pool.goes_on(run)
    if point.about == OPEN_STEPS and point.when == "half":  # in the middle of sampling: there is something
        assert "scored by an earlier start are taken back" in run.with_suffix(".log").read_text()


def test_a_run_that_has_ended_is_left_as_it_is(pool: Scene, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pool.goes_on(run)  # nothing is there
    pool.goes_on(run)
