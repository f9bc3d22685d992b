"""Optimizer steps whose loss is not finite: what is left out, written down and saved, and when the run
ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rs_aligner.rollout import TrainingRow
from tests.fake_run import FakePolicy, FakeRun, FakeStats

Train = Callable[[FakePolicy, Sequence[TrainingRow]], list[FakeStats]]


def bad_in(*versions: int, good: int = 0) -> Train:
    """Training in which the batches of these steps have no finite loss, but for the first `good` rows."""
    train = FakePolicy.train

    def trained(policy: FakePolicy, rows: Sequence[TrainingRow]) -> list[FakeStats]:
        if policy.version + 1 not in versions:
            return train(policy, rows)
        return [*train(policy, rows[:good]), FakeStats(math.nan, math.nan, 0.1, skipped=rows[good:])]

    return trained


def test_a_bad_step_is_left_out_and_its_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(tmp_path / "run")
    monkeypatch.setattr(FakePolicy, "train", bad_in(2, good=1))
    with caplog.at_level("WARNING", "rs_aligner"):
        run.start(steps=3)
    [line] = (run.folder / "bad_steps" / "step_000002.jsonl").read_text().splitlines()
    row = json.loads(line)
    kept = [(one.prompt_id, one.index, one.reward, one.response) for one in run.ledger.read(2) if one.kept]
    assert (row["id"], row["index"], row["reward"], row["response"]) in kept
    assert row["loss"] == "nan"
    assert "step 2: 1 of 2 optimizer steps are left out" in caplog.text
    assert row["id"] in caplog.text
    by_step = {row["step"]: row for row in run.rows}
    assert by_step[2]["optimizer_steps/skipped"] == 1
    assert math.isfinite(by_step[2]["loss"])
    assert "optimizer_steps/skipped" not in by_step[3]


def test_too_many_in_a_row_end_the_run_with_everything_saved_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path / "run")
    monkeypatch.setattr(FakePolicy, "train", bad_in(2, 3, 4))
    said = r"step 4: 3 optimizer steps in a row .*max_bad_steps.*step_000004"
    with pytest.raises(FloatingPointError, match=said) as error:
        run.start(steps=6, interval=None, save_interval=100, batch=100)
    last = run.folder / "checkpoints" / "step_000004"
    assert error.value.__notes__ == [f"the run goes on behind step 4 ({last})"]
    assert run.checkpoints() == ["step_000004"]
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4]
    run.start(steps=6, interval=None, save_interval=100, batch=100)
    assert run.checkpoints()[-1] == "step_000006"


def test_a_continued_run_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path / "run")
    monkeypatch.setattr(FakePolicy, "train", bad_in(2, 3, 4))
    run.start(steps=3, interval=None, batch=100)
    with pytest.raises(FloatingPointError, match="step 4"):
        run.start(steps=6, interval=None, batch=100)
