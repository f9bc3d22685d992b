"""The live view: on a real terminal, and what is in the picture."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from rs_aligner import progress
from rs_aligner.loggers import terminal
from rs_aligner.loggers.scene import Pace, Scene, duration
from tests.loggers.pty_screen import at_a_terminal, screen
from tests.loggers.samples import of_look, of_step


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program of `watched_run` wrote to its terminal, by surroundings."""
    content, status = at_a_terminal(["-m", "tests.loggers.watched_run", str(tmp_path_factory.mktemp("runs"))])
    assert status == 0, content
    parts = re.split(r"== (\w+)\r\n", content)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.slow
def test_a_run_on_a_terminal_is_drawn_and_log_lines_stand_above(shown: dict[str, str]) -> None:
    lines = [line.rstrip() for line in screen(shown["drawn"])]
    head = next(place for place, line in enumerate(lines) if "step 2 of 2" in line)
    assert "━" in lines[head + 1]
    assert "gone" in lines[head + 1]
    assert lines[head + 2].split()[:5] == ["step", "all", "kept", "random", "held-out"]
    assert [line.split()[0] for line in lines[head + 3 : head + 6]] == ["0", "1", "2"]
    below = "\n".join(lines[head:])
    assert re.search(r"\nkept [\d.]+\n", below)
    assert re.search(r"\nrejected [\d.]+, not in the top n\n", below)
    assert re.search(r"\njudge  \d+ answers scored, .* a second in this round, \d+ failed", below)
    assert "the last failure: the judge said" in below
    above = lines[:head]
    assert sum("a line that somebody prints" in line for line in above) >= 2
    told = [line for line in above if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert sum("step 1/2  reward" in line for line in told) == 1
    assert sum("validation after step 2" in line for line in told) == 1
    assert lines[-2:] == ["the shell goes on", ""]
    assert re.search(r"sampling \d+ of 16 answers", shown["drawn"])  # while it went on
    assert "rollouts/s" not in shown["drawn"]  # no bar of tqdm besides


@pytest.mark.slow
def test_nothing_that_a_model_or_a_judge_writes_acts_on_the_terminal(shown: dict[str, str]) -> None:
    lines = screen(shown["drawn"])  # which knows no sequence but the view's own
    assert any("␛[2J␛]0;owned␇[red]markup[/red]\\u009b5A␛[?25l" in line for line in lines)
    assert "\x1b]" not in shown["drawn"]
    assert "\x1b[2J" not in shown["drawn"]


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines(shown: dict[str, str]) -> None:
    assert "step 2/2  reward" in shown["plain"]
    assert "the judge said ␛[2J" in shown["plain"]
    assert "\x1b" not in shown["plain"]
    assert "answers scored" not in shown["plain"]


@pytest.mark.slow
def test_no_colour_is_heeded(shown: dict[str, str]) -> None:
    assert "answers scored" in shown["grey"]
    assert not re.search(r"\x1b\[(?:\d+;)*[39]\dm", shown["grey"])
    assert re.search(r"\x1b\[3[1-6]m", shown["drawn"])


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_terminal_in_order(shown: dict[str, str]) -> None:
    lines = [line.rstrip() for line in screen(shown["failed"])]
    assert lines[-2:] == ["the shell goes on", ""]
    assert "it failed: the power is gone" in lines
    assert shown["failed"].count("a line that somebody prints") >= 1


@pytest.mark.parametrize(
    ("out", "err", "env", "expected"),
    [
        (True, True, {"TERM": "xterm"}, True),
        (False, True, {"TERM": "xterm"}, False),  # `| tee`, whose lines would fall into the picture
        (True, False, {"TERM": "xterm"}, False),
        (True, True, {"TERM": "dumb"}, False),
        (True, True, {}, False),
        (False, True, {"TERM": "xterm", terminal.SHOWN: "1"}, True),  # a rank whose launcher shows its lines
    ],
)
def test_it_is_drawn_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, out: bool, err: bool, env: dict[str, str], expected: bool
) -> None:
    for name in ("TERM", terminal.SHOWN):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err, raising=False)
    assert terminal.can_draw() is expected


def test_a_view_that_cannot_be_drawn_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("no such terminal")

    monkeypatch.setattr(terminal, "_console", broken)
    view = terminal.View(tmp_path).start()
    view.log_metrics({"loss": 1.0}, 1)
    view.finalize("success")
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "no live view: no such terminal"
    ]


def test_the_time_left_is_that_of_the_whole_run() -> None:
    pace = Pace()
    assert pace.seconds_left(0.0, 1, 10) is None
    pace.look(100.0, 1)
    pace.look(105.0, 1)
    assert pace.seconds_left(105.0, 1, 10) is None  # no step has ended
    pace.look(110.0, 2)
    assert pace.seconds_left(110.0, 2, 10) == pytest.approx(90.0)
    assert pace.seconds_left(114.0, 2, 10) == pytest.approx(86.0)
    pace.look(150.0, 6)  # steps in between were too quick to be seen
    assert pace.seconds_left(150.0, 6, 10) == pytest.approx(50.0)
    assert pace.seconds_left(999.0, 6, 10) == 0.0
    assert pace.seconds_left(150.0, 6, None) is None


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 60, 3725, 90061)] == [
        *("0 s", "59 s", "1 min 0 s", "1 h 2 min", "1 d 1 h")
    ]


@pytest.mark.parametrize(("width", "height"), [(20, 6), (40, 12), (80, 24), (200, 60)])
def test_the_picture_fits_whatever_the_terminal(width: int, height: int) -> None:
    scene = Scene("日本" * 40, replicas=2)
    for step in range(40):
        scene.add_row({"reward/mean": 0.5, "reward/kept_mean": 1e-9, "loss": 12345.678}, step)
    scene.add_rollouts(of_step("日本語" * 200))
    progress.enter("sampling", step=3, steps=1000)
    progress.begin_round(128)
    progress.judged(failed=True)
    lines = scene.lines(width, height)
    assert len(lines) < height
    assert max(cell_len(line) for line, _ in lines) <= width
    assert any("of 64 answers" in line for line, _ in lines) is (width > 40)  # half of 128


def test_runs_of_other_kinds_have_their_own_columns() -> None:
    scene = Scene("runs/rm", rows=[{"step": 1, "loss": 0.7, "accuracy": 0.5, "lr": 1e-5}])
    scene.add_row({"loss": 0.6, "accuracy": 0.75, "validation/accuracy": 0.625}, 2)
    lines = [line for line, _ in scene.lines(100, 30)]
    assert "  step  right  held-out right  loss   rate" in lines
    assert any(line.split() == ["2", "0.75", "0.625", "0.6"] for line in lines)
    sft = Scene("runs/sft")
    sft.add_rollouts(of_look())
    assert sum(line.startswith("held-out 0") for line, _ in sft.lines(100, 30)) == 1
