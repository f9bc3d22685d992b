"""Stopping: each way to ask in each phase of a run, what is saved, and that nothing differs in the end.

In one process, with a policy that is a fake; the signals are real ones. The table with real processes is a
command, `benchmarks/signals.py`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner import progress, stopping
from rs_aligner.exit_status import TO_BE_CONTINUED
from rs_aligner.stopping import Stopped
from tests.fake_run import FakeJudge, FakeRun, by_tokens, figures

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
PHASES = ["sampling", "scoring", "training", "saving", "validating", "exporting"]
STEPS = 3


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts; where pytest is a shell's job in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def heeded() -> Iterator[None]:
    with stopping.signals(stop_within=60, second_interrupt=signal.SIG_DFL):
        yield


class Sender:
    """Sends a signal when step 2, or the export, is in a phase; counts what is done behind it."""

    def __init__(self, number: int, phase: str, run: FakeRun) -> None:
        self.number, self.phase, self.run = number, phase, run
        self.sent_at: int | None = None

    def __call__(self, phase: progress.Phase, **how: Any) -> None:
        doing = progress.current()
        if phase != self.phase or self.sent_at is not None or (doing.step != 2 and phase != "exporting"):
            return
        self.sent_at = len(self.run.events)
        os.kill(os.getpid(), self.number)

    @property
    def behind(self) -> list[str]:
        assert self.sent_at is not None, "the signal was never sent"
        return self.run.events[self.sent_at :]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Weights and metrics of a run that nobody stops."""
    run = FakeRun(tmp_path_factory.mktemp("through") / "run")
    (policy,) = run.start(steps=STEPS, interval=1, save_interval=5)
    return policy.weights, figures(run.rows)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_in_any_phase_loses_nothing(
    number: int,
    phase: str,
    through: tuple[str, list[dict[str, Any]]],
    heeded: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun(tmp_path / "run")
    sender, enter = Sender(number, phase, run), progress.enter

    def entered(name: progress.Phase, **how: Any) -> None:
        enter(name, **how)
        sender(name)

    monkeypatch.setattr(progress, "enter", entered)
    save_interval = 2 if phase == "saving" else 5  # so that there is something unsaved
    if phase == "exporting":  # all is saved, and what is left is finished
        run.start(steps=STEPS, interval=1, save_interval=save_interval)
        assert sender.behind == ["export"]
    else:
        with pytest.raises(Stopped) as stopped:
            run.start(steps=STEPS, interval=1, save_interval=save_interval)
        assert stopped.value.code == TO_BE_CONTINUED
        assert stopped.value.reason == {signal.SIGINT: "Ctrl-C"}.get(number, signal.Signals(number).name)
        done = {"sampling": 1, "scoring": 1, "training": 2, "saving": 2, "validating": 2}[phase]
        assert run.checkpoints()[-1] == f"step_{done:06d}"
        assert not (run.folder / "final").exists()
        most = {"sampling": 1, "scoring": 0, "training": 0, "saving": 1, "validating": 1}[phase]
        assert sender.behind.count("rollout") <= most
        assert sender.behind.count("train") <= (phase == "training")
    monkeypatch.undo()
    (policy,) = run.start(steps=STEPS, interval=1, save_interval=save_interval)
    assert (policy.weights, figures(run.rows)) == through
    assert run.ledger.steps() == [1, 2, 3]


@pytest.mark.parametrize("phase", ["sampling", "training"])
def test_a_wish_that_reaches_one_of_two_replicas_stops_both(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both end with the same checkpoint; neither waits for the other in an exchange."""
    run, other = FakeRun(tmp_path / "run"), FakeRun(tmp_path / "other")
    (through, _) = other.start(steps=STEPS, interval=None, replicas=2)
    main, enter = threading.current_thread(), progress.enter
    asked = threading.Event()

    def entered(name: progress.Phase, **how: Any) -> None:
        enter(name, **how)
        if name == phase and progress.current().step == 2:
            asked.set()

    def polled() -> bool:
        return asked.is_set() and threading.current_thread() is not main

    monkeypatch.setattr(progress, "enter", entered)
    monkeypatch.setattr(stopping, "poll", polled)
    monkeypatch.setattr(stopping, "is_asked", polled)
    with pytest.raises(Stopped):
        run.start(steps=STEPS, interval=None, replicas=2)
    assert [type(error) for error in run.errors] == [Stopped, Stopped]
    assert run.checkpoints() == [f"step_{1 if phase == 'sampling' else 2:06d}"]
    monkeypatch.undo()
    (policy, _) = run.start(steps=STEPS, interval=None, replicas=2)
    assert policy.weights == through.weights
    assert figures(run.rows) == figures(other.rows)


class SlowJudge(FakeJudge):
    """Never answers half of what it is asked in step 2, and a wish to stop comes meanwhile."""

    def flush(self) -> None:
        if progress.current().step == 2:
            self.waiting = self.waiting[: len(self.waiting) // 2]
            stopping.ask("a test")
        super().flush()


def test_a_stop_waits_for_a_judge_only_a_while_and_keeps_what_it_scored(
    through: tuple[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path / "run")
    judges: list[FakeJudge] = []

    def judge(slow: bool) -> FakeJudge:
        judges.append((SlowJudge if slow else FakeJudge)(by_tokens, run.events, 0.0))
        return judges[-1]

    monkeypatch.setattr("rs_aligner.trainers.round.IN_FLIGHT_SECONDS", 0.1)
    with pytest.raises(Stopped, match="a test"):
        run.start(steps=STEPS, interval=1, save_interval=5, judge=lambda _: judge(True))
    assert run.checkpoints() == ["step_000001"]
    (policy,) = run.start(steps=STEPS, interval=1, save_interval=5, judge=lambda _: judge(False))
    assert policy.weights == through[0]
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3]
    first, second = ({shown for shown in one.scored if shown[0][0] == "p"} for one in judges)
    assert not first & second  # nothing that was scored is judged again
    assert len(first) + len(second) == 40  # steps of 4, 2 and 4 prompts


def test_where_no_time_is_left_nothing_is_saved_and_the_run_goes_on_behind_its_last_checkpoint(
    through: tuple[str, list[dict[str, Any]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(tmp_path / "run")

    def ask() -> None:
        if progress.current().step == 3:
            stopping.note_save(100.0)
            stopping.ask("a test", within=30)

    with pytest.raises(Stopped), caplog.at_level("WARNING"):
        run.start(steps=STEPS, interval=1, save_interval=2, before_train=ask)
    assert run.checkpoints() == ["step_000002"]
    assert "no time was left for a checkpoint" in caplog.text
    (policy,) = run.start(steps=STEPS, interval=1, save_interval=2)
    assert (policy.weights, figures(run.rows)) == through


def test_a_step_that_no_time_is_left_to_finish_is_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights have moved: behind the last checkpoint there is nothing that could be saved."""
    run = FakeRun(tmp_path / "run")

    def cut() -> None:
        if progress.current().step == 2:
            raise Stopped("a test", moved=True)

    with pytest.raises(Stopped), caplog.at_level("WARNING"):
        run.start(steps=STEPS, interval=None, save_interval=1, before_train=cut)
    assert run.checkpoints() == ["step_000001"]
    assert "no time was left to finish the step" in caplog.text


def test_a_file_in_the_runs_folder_stops_it_and_one_of_an_earlier_start_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path / "run")
    run.folder.mkdir()
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.0)
    (run.folder / "stop").touch()

    def touch() -> None:
        if progress.current().step == 2:
            os.utime(run.folder / "stop", ns=(1, 1))

    stopping.watch(run.folder, is_first=True, tells_others=False)
    with pytest.raises(Stopped, match="stop"):
        run.start(steps=STEPS, interval=None, save_interval=5, before_train=touch)
    assert run.checkpoints() == ["step_000002"]
    assert not (run.folder / "stop").exists()


def test_a_rank_that_is_asked_leaves_a_file_for_the_others(tmp_path: Path) -> None:
    stopping.watch(tmp_path, is_first=False, tells_others=True)
    try:
        assert not stopping.is_asked()
        stopping.ask("SIGTERM")
        assert stopping.is_asked()
        assert (tmp_path / "stop").exists()
    finally:
        stopping.forget()


def test_handlers_are_put_back_and_a_second_interrupt_is_what_it_was() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with stopping.signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.is_asked()
        assert stopping.was_interrupted()
        assert stopping.seconds_left() == float("inf")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert not stopping.is_asked()


def test_in_a_program_that_handles_a_signal_itself_its_handler_stays(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with stopping.signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stopping.is_asked()
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_than_the_main_one_no_handler_is_set() -> None:
    found: list[Any] = []

    def look() -> None:
        with stopping.signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_the_first_wish_stands_and_the_shortest_patience_counts() -> None:
    try:
        stopping.ask("SIGUSR1", within=120)
        stopping.ask("SIGTERM", within=30)
        assert stopping.reason() == "SIGUSR1"
        assert stopping.seconds_left() <= 30
    finally:
        stopping.forget()
