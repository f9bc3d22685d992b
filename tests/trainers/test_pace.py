"""Where a loop stands, by itself; what loops make of it is in `test_rs.py`, `test_sft.py` and others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rs_aligner import stopping
from rs_aligner.config import ExpManagerConfig
from rs_aligner.record.format import RunRecord
from rs_aligner.record.manifest import BrokenCheckpoint
from rs_aligner.record.run import Run
from rs_aligner.trainers.pace import Pace, is_due, resume

KEY = "exp_manager.max_time_per_run"


class Clock:
    """Stands in for the `time` modules of who looks at the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class OneRank:
    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        return values


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in ("stopping", "trainers.pace"):
        monkeypatch.setattr(f"rs_aligner.{module}.time", clock)
    yield clock
    stopping.forget()


@pytest.mark.parametrize(
    ("interval", "due"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5]), (7, []), (None, [])]
)
def test_what_is_done_every_so_many_steps(interval: int | None, due: list[int]) -> None:
    assert [step for step in range(1, 7) if is_due(step, interval)] == due


@pytest.fixture(autouse=True)
def one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ranks see of the folder has tests of its own."""
    monkeypatch.setattr("rs_aligner.trainers.pace.check_folder", lambda *_, **__: None)


class Trainee:
    """Whose checkpoints are good, or broken where a file says so."""

    def gather(self, item: Any) -> list[Any]:
        return [item or (None, "", False)]

    def checkpoint_bytes(self) -> int:
        return 0

    def load(self, folder: Path) -> dict[str, Any]:
        if (reason := folder / "broken").exists():
            raise BrokenCheckpoint(f"{folder} is no good checkpoint: {reason.read_text()}")
        return {"step": int(folder.name[5:]), "sampler": {"epoch": 2}}


def place(folder: Path, step: int, broken: str | None = None) -> Path:
    path = folder / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    RunRecord("", saved=step).write(folder)
    if broken is not None:
        (path / "broken").write_text(broken)
    return path


def go_on(folder: Path, *, is_first: bool = True) -> tuple[dict[str, Any], Run, list[Any]]:
    run = Run(ExpManagerConfig.model_validate({"explicit_log_dir": str(folder)}), is_first=is_first)
    placed: list[Any] = []
    sampler = SimpleNamespace(load_state_dict=placed.append)
    try:
        return resume(run, cast(Any, Trainee()), cast(Any, sampler)), run, placed
    finally:
        run.close()


def test_a_new_run_has_made_no_step_not_even_that_before_the_first(tmp_path: Path) -> None:
    assert go_on(tmp_path)[0] == {"step": -1}


def test_a_run_goes_on_with_the_counters_of_its_checkpoint_and_its_prompts_where_they_were(
    tmp_path: Path,
) -> None:
    newest = [place(tmp_path, step) for step in (3, 7)][-1]
    counters, run, placed = go_on(tmp_path)
    assert (counters["step"], placed) == (7, [{"epoch": 2}])
    assert run.last_checkpoint == newest


def test_broken_checkpoints_are_set_aside_and_the_newest_good_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step, broken in ((1, None), (2, None), (3, "common.pt is missing"), (4, "it is of step 3")):
        place(tmp_path, step, broken)
    (tmp_path / "checkpoints" / "step_000004.broken").mkdir()  # of an earlier time
    others = go_on(tmp_path, is_first=False)
    assert others[0]["step"] == 2
    assert (tmp_path / "checkpoints" / "step_000004").exists()  # the first rank sets aside
    with caplog.at_level("WARNING"):
        counters, run, _ = go_on(tmp_path)
    assert counters["step"] == 2
    assert run.last_checkpoint == tmp_path / "checkpoints" / "step_000002"
    assert sorted(path.name[5:] for path in run.checkpoints.iterdir()) == [
        *("000001", "000002", "000003.broken", "000004.broken", "000004.broken_2"),
    ]
    assert "step_000003 is no good checkpoint: common.pt is missing" in caplog.text
    assert "step_000004.broken_2, and the run goes on from step_000002" in caplog.text


def test_where_no_checkpoint_is_good_the_run_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    for step, broken in ((1, "common.pt is missing"), (2, "it is of step 3")):
        place(tmp_path, step, broken)
    with pytest.raises(BrokenCheckpoint) as error:
        go_on(tmp_path)
    for words in ("has no good checkpoint", "common.pt is missing", "it is of step 3", "explicit_log_dir"):
        assert words in str(error.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        *("step_000001", "step_000002"),
    ]


def test_without_a_time_limit_there_is_always_time(clock: Clock) -> None:
    pace = Pace(OneRank())
    stopping.limit(None, key=KEY, since=clock.now)
    pace.begin_step()
    clock.now += 1e9
    assert not pace.stop_is_due(another=True)


@pytest.mark.parametrize(("limit", "stops"), [(24.9, True), (25.1, False)])
def test_a_step_is_begun_only_if_one_and_a_half_of_the_longest_fit(
    clock: Clock, limit: float, stops: bool
) -> None:
    pace = Pace(OneRank())
    stopping.limit(limit, key=KEY, since=clock.now)
    pace.begin_step()
    clock.now += 10
    assert pace.stop_is_due(another=True) == stops
    assert stopping.is_asked() == stops


def test_a_step_counts_with_its_validation_and_the_checkpoint_comes_on_top(clock: Clock) -> None:
    """Steps of 10 s, after the first of which 30 s went into validation and checkpoint."""
    pace = Pace(OneRank())
    stopping.limit(120.0, key=KEY, since=clock.now)
    pace.begin_step()
    clock.now += 10
    assert not pace.stop_is_due(another=True)
    clock.now += 30
    stopping.note_save(4.0)
    pace.begin_step()
    clock.now += 10
    assert not pace.stop_is_due(another=True)  # 50 s are gone, and 1.5 x (40 + 4) fit into 70
    clock.now += 5
    assert pace.stop_is_due(another=True)


def test_behind_the_last_step_only_the_checkpoint_has_to_fit(clock: Clock) -> None:
    pace = Pace(OneRank())
    stopping.limit(25.0, key=KEY, since=clock.now)
    stopping.note_save(2.0)
    pace.begin_step()
    clock.now += 21.9  # 1.5 x 2 fit into 3.1
    assert not pace.stop_is_due(another=False)
    assert pace.stop_is_due(another=True)


def test_a_limit_is_asked_for_in_time_for_the_longest_save_wherever_the_run_is(clock: Clock) -> None:
    stopping.limit(100.0, key=KEY, since=clock.now)
    clock.now += 89.9
    assert not stopping.is_asked()  # a tenth is kept for a save that was not measured
    stopping.note_save(1.0)
    clock.now += 8.5
    assert not stopping.is_asked()
    stopping.note_save(2.0)
    assert stopping.is_asked()
    assert stopping.reason() == "exp_manager.max_time_per_run is nearly over"
    assert not stopping.can_save()  # 1.6 s are left, and 1.5 x 2 may be needed


def test_slurms_clock_is_a_limit_and_the_earlier_one_counts(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "time", lambda: 5000.0, raising=False)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5040")
    stopping.limit(None, key=KEY, since=clock.now)
    assert stopping.seconds_left() == pytest.approx(40)
    stopping.limit(30.0, key=KEY, since=clock.now)
    assert stopping.seconds_left() == pytest.approx(30)
    stopping.limit(50.0, key=KEY, since=clock.now)
    assert stopping.seconds_left() == pytest.approx(40)
    assert stopping.limit_name() == "the time of the Slurm job"
