"""Runs of every kind have a page, and what it counts is what the judge was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import TrainRewardModelConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.config.changes import settings_of
from rs_aligner.report.about import settings_set
from rs_aligner.report.page import write_report
from rs_aligner.report.run_data import RunKind, open_run
from rs_aligner.report.sums import Sums, summed
from rs_aligner.rollout import Prompt, Rollout, Score
from tests.fake_run import FakeRun, Result
from tests.report.made_up import add_step, group, write_run

MUST = {
    "exp_manager": {"explicit_log_dir": "x"},
    "pretrained_checkpoint": {"restore_from_path": "x"},
    "model": {"data": {"data_prefix": {"train": "x"}}},
}


def passes(prompt: Prompt, rollout: Rollout) -> Result:
    return Score(float(rollout.seed % 3 == 0))


@pytest.mark.parametrize(
    "how",
    [
        {"interval": 1},
        {"interval": None, "steps": 1},
        {"pool": {"max_staleness": 2}},
        {"pool": {"improve_steps": 2}},
        {"until": {"accepted": 1, "at_least": 1.0, "max_rollouts": 12}, "score": passes},
        {"watched": passes},
    ],
    ids=["validated", "one step", "a bank", "improved twice", "until", "watched"],
)
def test_what_is_counted_is_what_the_judge_was_asked(tmp_path: Path, how: dict[str, Any]) -> None:
    run = FakeRun(tmp_path)
    how = {"steps": 4, "epochs": 9, **how}
    run.start(how.pop("score", passes), **how)
    page = write_report(tmp_path).read_text()
    found = summed(open_run(tmp_path))
    asked = sum(run.judges[0].scored.values())
    assert found.rollouts + found.held_out == asked > 0
    assert f"<strong>{asked:,}</strong>" in page
    assert found.watched == (asked if "watched" in how else 0)
    assert found.kept_scores.number == sum(row.get("rollouts/kept", 0) for row in run.rows)
    by_design = found.scores.number
    if "until" in how:
        assert len(found.tries) > 1
        assert by_design < found.rollouts
        assert 'id="tries-title"' in page
    else:
        assert by_design == found.rollouts


def test_answers_that_were_given_are_not_counted_as_sampled_or_judged(tmp_path: Path) -> None:
    config = {**MUST, "model": {**MUST["model"], "rs": {"offline": ["x"], "pool": {"improve_steps": 2}}}}
    folder = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 0.5}], config=config)
    given = [group(0, [0.0, 1.0], version=0)]
    for step in (1, 2, 3):
        add_step(folder, step, given, [[1]], everything=True)
    page = " ".join(write_report(folder).read_text().split())
    assert summed(open_run(folder), offline_steps=2).rollouts == 4  # the cycles of steps 1 and 3
    assert "<dt>scored answers, given</dt><dd><strong>4</strong>" in page
    assert "<dt>answers judged</dt><dd><strong>0</strong>" in page


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("train_rs", TrainRSConfig),
        ("train_sft", TrainSFTConfig),
        ("train_reward_model", TrainRewardModelConfig),
    ],
)
def test_only_what_has_to_be_set_differs_from_the_defaults(kind: RunKind, schema: Any) -> None:
    settings = settings_of(schema.model_validate(MUST))
    assert [(one.key, one.default) for one in settings_set(kind, settings)] == [
        ("exp_manager.explicit_log_dir", "must be set"),
        ("model.data.data_prefix.train", "must be set"),
        ("pretrained_checkpoint.restore_from_path", "must be set"),
    ]


def test_a_run_that_was_killed_in_its_first_step_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state="sampling")
    assert summed(open_run(folder)) == Sums(summed(open_run(folder)).made_for)
    assert "<html" in write_report(folder).read_text()
