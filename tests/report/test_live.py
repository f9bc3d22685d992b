"""The page while a run goes on: after validations as far as it is cheap, at the end always."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rs_aligner import stopping
from rs_aligner.commands import build
from rs_aligner.config import TrainRSConfig
from rs_aligner.record.run import Run
from rs_aligner.report import page
from rs_aligner.report.live import SHARE, LivePage
from rs_aligner.report.page import PAGE
from tests.fake_run import FakeRun
from tests.report.made_up import add_step, group, write_run

VALIDATION = {"validation/reward": 0.5}


class Clock:
    """CPU time that passes as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], Clock]:
    """When a page was written; each takes a second of the clock."""
    written: list[float] = []
    clock = Clock()

    def write(run: Path, check: Callable[[], None]) -> Path:
        check()
        written.append(clock.now)
        clock.now += 1.0
        return run / PAGE

    monkeypatch.setattr(page, "write_report", write)
    return written, clock


def test_pages_cost_at_most_their_share_of_the_cpu_time(
    tmp_path: Path, pages: tuple[list[float], Clock]
) -> None:
    written, clock = pages
    live = LivePage(write_run(tmp_path), cpu_seconds=clock)
    for second in range(0, 2000, 10):
        clock.now = max(clock.now, float(second))
        live.log_metrics(VALIDATION, step=second)
        assert len(written) <= SHARE * clock.now
    assert len(written) == 19
    before = len(written)
    live.log_metrics({"reward/mean": 0.5}, step=1)  # no validation
    live.finalize("success")
    live.finalize("success")
    assert len(written) == before + 2


def test_what_was_not_read_yet_counts_as_cost(tmp_path: Path, pages: tuple[list[float], Clock]) -> None:
    written, clock = pages
    folder = write_run(tmp_path)
    add_step(folder, 1, [group(0, [0.5])], [[0]])
    with (folder / "rollouts" / "step_000001.jsonl").open("r+b") as file:
        file.truncate(150_000_000)  # ten seconds to read
    live = LivePage(folder, cpu_seconds=clock)
    clock.now = 1000.0
    live.log_metrics(VALIDATION, step=1)
    assert written == []
    clock.now = 1200.0
    live.log_metrics(VALIDATION, step=1)
    assert written == [1200.0]


def test_a_page_that_cannot_be_written_is_a_warning_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(run: Path, check: Callable[[], None]) -> Path:
        raise OSError(28, "No space left on device", str(run / PAGE))

    monkeypatch.setattr(page, "write_report", broken)
    live = LivePage(write_run(tmp_path), cpu_seconds=lambda: 1e9)
    live.log_metrics(VALIDATION, step=1)
    live.finalize("success")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("the report was not written (told once): OSError: [Errno 28] No space left")


def test_a_run_that_has_to_stop_at_once_writes_no_page(
    tmp_path: Path, pages: tuple[list[float], Clock], caplog: pytest.LogCaptureFixture
) -> None:
    written, clock = pages
    live = LivePage(write_run(tmp_path / "run"), cpu_seconds=clock)
    try:
        stopping.ask("SIGTERM", within=4.0)
        live.finalize("success")
    finally:
        stopping.forget()
    assert written == []
    assert f"rs-aligner report {tmp_path / 'run'} writes it" in caplog.text


def test_a_folder_that_a_run_never_began_in_is_left_alone(
    tmp_path: Path, pages: tuple[list[float], Clock]
) -> None:
    LivePage(tmp_path, cpu_seconds=pages[1]).finalize("failed")
    assert pages[0] == []


def config_of(folder: Path, *, report: bool) -> TrainRSConfig:
    return TrainRSConfig.model_validate(
        {
            "exp_manager": {
                "explicit_log_dir": str(folder),
                "report": report,
                "create_tensorboard_logger": False,
            },
            "pretrained_checkpoint": {"restore_from_path": "unused"},
            "model": {"data": {"data_prefix": {"train": "unused"}}},
        }
    )


@pytest.mark.parametrize(
    ("report", "is_first", "number"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_only_the_first_rank_writes_it_and_only_where_it_is_wanted(
    tmp_path: Path, report: bool, is_first: bool, number: int
) -> None:
    config = config_of(tmp_path, report=report)
    run = Run(config.exp_manager, is_first=is_first, command="train_rs")
    build.open_loggers(config, run)
    assert sum(isinstance(one, LivePage) for one in run.loggers) == number


def test_the_page_of_a_run_that_ends_says_how_it_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rs_aligner")
    FakeRun(tmp_path).start(steps=2, interval=1)
    config = config_of(tmp_path, report=True)

    def fail() -> None:
        with Run(config.exp_manager, is_first=True, command="train_rs") as run:
            build.open_loggers(config, run)
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        fail()
    assert "It failed" in (text := (tmp_path / PAGE).read_text())
    assert "the power is gone" in text
    assert f"report: {tmp_path / PAGE}" in caplog.text
