"""A run's folder: which checkpoints stay, what a start continues from, and what loggers are told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ExpManagerConfig
from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.manifest import CannotSave
from rs_aligner.record.run import Run
from rs_aligner.stopping import Stopped


class FakePolicy:
    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "counters.json").write_text(json.dumps(counters))


class FakeLogger:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.status = ""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append({"step": step, **metrics})

    def finalize(self, status: str) -> None:
        self.status = status


def open_run(folder: Path, *, is_first: bool = True, loggers: Any = (), **config: Any) -> Run:
    config = {"explicit_log_dir": str(folder), **config}
    return Run(ExpManagerConfig.model_validate(config), is_first=is_first, loggers=loggers)


def train(run: Run, figures: Mapping[int, float | None]) -> None:
    """A step with that validation figure and a checkpoint, for each."""
    run.open(-1)
    for step, figure in figures.items():
        row: dict[str, float] = {"step": step, "loss": 1.0}
        run.record(row if figure is None else {**row, "validation/reward": figure})
        run.save(FakePolicy(), step, {"step": step})
    run.close()


def steps(run: Run) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.checkpoints.iterdir())


# Which checkpoints stay

RISES_AND_FALLS = {1: 0.3, 2: 0.1, 3: 0.9, 4: 0.5, 5: 0.2}


@pytest.mark.parametrize(
    ("mode", "save_top_k", "stay"),
    [
        ("max", -1, [1, 2, 3, 4, 5]),
        ("max", 0, [4, 5]),
        ("max", 1, [3, 4, 5]),
        ("max", 2, [3, 4, 5]),
        ("min", 1, [2, 4, 5]),
        ("min", 2, [2, 4, 5]),
        ("min", 3, [1, 2, 4, 5]),
        ("max", 9, [1, 2, 3, 4, 5]),
    ],
)
def test_the_two_newest_and_the_best_checkpoints_stay(
    tmp_path: Path, mode: str, save_top_k: int, stay: list[int]
) -> None:
    run = open_run(tmp_path, checkpoint_callback_params={"mode": mode, "save_top_k": save_top_k})
    train(run, RISES_AND_FALLS)
    assert steps(run) == stay


def test_of_equal_checkpoints_the_newest_stays(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    train(run, {1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1})
    assert steps(run) == [2, 3, 4]


def test_a_checkpoint_without_a_figure_is_never_the_best(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    train(run, {1: -5.0, 2: None, 3: None, 4: None})
    assert steps(run) == [1, 3, 4]


def test_the_best_of_an_earlier_start_stays_after_a_restart(tmp_path: Path) -> None:
    train(open_run(tmp_path), {1: 0.9, 2: 0.1})
    run = open_run(tmp_path)
    run.open(2)
    run.record({"step": 3, "validation/reward": 0.5})
    run.save(FakePolicy(), 3, {})
    assert steps(run) == [1, 2, 3]
    run.save(FakePolicy(), 4, {})
    assert steps(run) == [1, 3, 4]


def test_only_the_writing_rank_removes_checkpoints(tmp_path: Path) -> None:
    run = open_run(tmp_path, checkpoint_callback_params={"save_top_k": 0})
    other = open_run(tmp_path, is_first=False, checkpoint_callback_params={"save_top_k": 0})
    train(run, {1: 0.5, 2: 0.5})
    other.save(FakePolicy(), 3, {})
    assert steps(run) == [1, 2, 3]


def test_what_a_killed_save_left_is_cleared_up(tmp_path: Path) -> None:
    train(open_run(tmp_path), {1: 0.5, 2: 0.5, 3: 0.5})
    places = tmp_path / "checkpoints"
    (places / "step_000004.partial").mkdir()
    (places / "step_000003").rename(places / "step_000003.replaced")  # killed before the new one had the name
    (places / "step_000002.replaced").mkdir()  # killed behind that
    (places / "step_000002.broken").mkdir()
    run = open_run(tmp_path)
    run.prepare_checkpoints(0)
    assert [path.name for path in run.newest_first()] == ["step_000003", "step_000002"]
    assert (places / "step_000003" / "counters.json").is_file()
    assert sorted(path.name for path in places.iterdir()) == [
        "step_000002",
        "step_000002.broken",
        "step_000003",
    ]


def ended(run: Run, how: Callable[[], object], error: type[BaseException], last_step: int = -1) -> list[str]:
    """A run that is at work behind a checkpoint ends like this; the notes of the error."""

    def work() -> None:
        with run:
            run.open(last_step)
            how()

    with pytest.raises(error) as found:
        work()
    return getattr(found.value, "__notes__", [])


def failing(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def test_a_save_that_fails_leaves_what_is_good_and_the_run_says_that_it_goes_on_there(tmp_path: Path) -> None:
    class Full(FakePolicy):
        def save(self, folder: Path, counters: dict[str, Any]) -> None:
            raise CannotSave(f"{folder} cannot be written: no space left on device")

    run = open_run(tmp_path)
    assert ended(run, lambda: run.save(Full(), 1, {}), CannotSave) == [
        "the run goes on from the beginning, since it has no checkpoint"
    ]
    train(open_run(tmp_path), {1: 0.5, 2: 0.5})
    again = open_run(tmp_path)
    assert ended(again, lambda: again.save(Full(), 3, {}), CannotSave, 2) == [
        f"the run goes on behind step 2 ({tmp_path}/checkpoints/step_000002)"
    ]
    assert steps(run) == [1, 2]


def test_where_a_start_may_be_refused_none_is_promised(tmp_path: Path) -> None:
    """Before the folder is open, whatever is in it; and where another run has it."""
    train(open_run(tmp_path), {1: 0.5})
    with pytest.raises(ValueError, match="another seed") as refused, open_run(tmp_path):
        raise ValueError("another seed")
    assert not hasattr(refused.value, "__notes__")
    assert ended(open_run(tmp_path), failing(LeaseLost("was taken over")), LeaseLost, 1) == []


@pytest.mark.parametrize("is_first", [True, False])
def test_a_stop_says_where_the_run_goes_on_also_before_its_folder_is_open(
    is_first: bool, tmp_path: Path
) -> None:
    train(open_run(tmp_path), {1: 0.5})
    with pytest.raises(Stopped) as stopped, open_run(tmp_path, is_first=is_first):
        raise Stopped("SIGTERM")
    assert stopped.value.__notes__ == [f"the run goes on behind step 1 ({tmp_path}/checkpoints/step_000001)"]


def test_a_run_that_does_not_resume_says_by_which_key_it_goes_on(tmp_path: Path) -> None:
    run = open_run(tmp_path, resume_if_exists=False)

    def save_and_fail() -> None:
        run.save(FakePolicy(), 1, {})
        raise OSError("full")

    [note] = ended(run, save_and_fail, OSError)
    where = f"behind step 1 ({tmp_path}/checkpoints/step_000001)"
    assert note == f"with exp_manager.resume_if_exists=true the run goes on {where}"
    with pytest.raises(ValueError, match="resume_if_exists is false"):
        open_run(tmp_path, resume_if_exists=False)


def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CannotSave, match=r"no space left on device: .* free.* 1\.02e\+03 PB"):
        open_run(tmp_path).prepare_checkpoints(10**18)


# What a start continues from


def test_a_new_folder_has_nothing_to_continue_from(tmp_path: Path) -> None:
    assert open_run(tmp_path / "new").last_checkpoint is None


def test_a_start_continues_from_the_newest_checkpoint_by_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    assert open_run(tmp_path).last_checkpoint == tmp_path / "checkpoints" / "step_1000000"


def test_incomplete_checkpoints_are_ignored(tmp_path: Path) -> None:
    train(open_run(tmp_path), {1: 0.5})
    (tmp_path / "checkpoints" / "step_000002.partial").mkdir()
    (tmp_path / "checkpoints" / "step_000003").write_text("a file")
    (tmp_path / "checkpoints" / "step_old").mkdir()
    assert open_run(tmp_path).last_checkpoint == tmp_path / "checkpoints" / "step_000001"


def test_a_folder_with_a_checkpoint_is_refused_where_resuming_is_off(tmp_path: Path) -> None:
    train(open_run(tmp_path, resume_if_exists=False), {1: 0.5})
    with pytest.raises(ValueError, match="resume_if_exists is false") as error:
        open_run(tmp_path, resume_if_exists=False)
    assert str(tmp_path) in str(error.value)
    assert "step_000001" in str(error.value)


def test_opening_drops_figures_behind_the_checkpoint_that_no_step_of_the_ledger_has(tmp_path: Path) -> None:
    train(open_run(tmp_path), {0: 0.1, 1: 0.2, 2: 0.3})
    run = open_run(tmp_path)
    left = run.open(1)
    assert left is not None
    assert (left.last_step, left.names) == (1, frozenset())
    run.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [0, 1]


def test_a_rank_that_does_not_write_leaves_no_trace(tmp_path: Path) -> None:
    logger = FakeLogger()
    run = open_run(tmp_path / "run", is_first=False)
    assert run.open(-1) is None
    run.record({"step": 1, "loss": 1.0})
    run.close()
    assert not (tmp_path / "run").exists()
    assert logger.rows == []


# Loggers and the time limit


def test_loggers_get_the_same_figures_as_the_metrics_file(tmp_path: Path) -> None:
    logger = FakeLogger()
    run = open_run(tmp_path, loggers=[logger])
    run.open(-1)
    run.record({"step": 0, "validation/reward": 0.25})
    run.record({"step": 1, "loss": math.nan, "grad_norm": math.inf, "rollouts/kept": 3})
    run.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert logger.rows == rows == [{"step": 0, "validation/reward": 0.25}, {"step": 1, "rollouts/kept": 3}]
    assert logger.status == "success"


def test_leaving_a_run_closes_its_loggers_as_it_ended(tmp_path: Path) -> None:
    logger = FakeLogger()
    with open_run(tmp_path, loggers=[logger]) as run:
        run.open(-1)
    assert logger.status == "success"
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, loggers=[logger]):
        raise KeyboardInterrupt
    assert logger.status == "failed"
