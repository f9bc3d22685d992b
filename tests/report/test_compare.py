"""Runs on one page: paired where they answered the same prompts, told where figures cannot be compared."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from rs_aligner.report.compare import compare, write_page
from tests.command import status_of
from tests.report.made_up import add_look, group, write_run
from tests.report.test_page import NASTY, Elements

BEFORE = [[0.0, 1.0], [2.0, 3.0], [5.0, 6.0], [9.0, 9.0]]
AFTER = [[1.0, 2.0], [2.5, 3.5], [7.0, 7.0], [9.0, 9.5]]


def config(folder: Path, **rs: Any) -> dict[str, Any]:
    return {
        "trainer": {"devices": 2},
        "exp_manager": {"explicit_log_dir": str(folder)},
        "pretrained_checkpoint": {"restore_from_path": "unused"},
        "remote_rm": {},
        "model": {"data": {"data_prefix": {"train": "unused"}}, "rs": rs},
    }


def rows(score: float) -> list[dict[str, float]]:
    return [
        {"step": 0, "validation/reward": 1.0, "validation/reward_error": 0.1},
        {"step": 1, "reward/mean": 0.5, "tokens/generated": 100, "time/step": 3.0},
        {
            "step": 2,
            "reward/mean": score,
            "tokens/generated": 60,
            "time/step": 2.0,
            "validation/reward": score,
            "validation/reward_error": 0.1,
        },
    ]


def made(folder: Path, scores: list[list[float]], *, texts: list[str] | None = None, **rs: Any) -> Path:
    write_run(folder, rows(fmean(map(fmean, scores))), config=config(folder, **rs))
    add_look(folder, 0, [group(number, [1.0, 1.0]) for number in range(len(scores))])
    groups = [group(number, row, text=f"{folder.name} {NASTY}") for number, row in enumerate(scores)]
    add_look(folder, 2, groups)
    return folder


def test_the_same_prompts_are_compared_pair_by_pair(tmp_path: Path) -> None:
    found = compare([made(tmp_path / "a", BEFORE), made(tmp_path / "b", AFTER, num_rollouts_per_prompt=8)])
    a, b = found.runs
    means = [[fmean(row) for row in scores] for scores in (BEFORE, AFTER)]
    differences = [after - before for before, after in zip(*means, strict=True)]
    assert b.gain is not None
    assert b.gain.is_paired
    assert b.gain.num_prompts == 4
    assert b.gain.mean == pytest.approx(fmean(differences))
    assert b.gain.error == pytest.approx(stdev(differences) / 2)
    assert a.last is not None
    assert a.last.error is not None
    assert b.gain.error < a.last.error / 2  # that is what pairing is for
    assert (a.tokens, a.device_seconds, a.steps) == (160, 2 * 5.0, 2)
    assert [(one.key, one.values) for one in found.settings] == [
        ("model.rs.num_rollouts_per_prompt", ("4", "8"))
    ]
    assert not found.warnings
    assert {key[0] for key in found.prompts} == {f"prompt {number}" for number in range(4)}


def test_other_prompts_and_another_judge_are_told(tmp_path: Path) -> None:
    first = made(tmp_path / "a", BEFORE)
    second = write_run(tmp_path / "b", rows(3.0))
    add_look(second, 2, [group(number, [1.0 * number]) for number in range(10, 14)])
    found = compare([first, second])
    a, b = found.runs
    assert b.gain is not None
    assert not b.gain.is_paired
    assert b.gain.mean == pytest.approx(11.5 - fmean(map(fmean, BEFORE)))
    assert a.last is not None
    assert b.last is not None
    assert b.gain.error == pytest.approx(math.hypot(a.last.error or 0, b.last.error or 0))
    assert found.prompts == []
    assert any("b was held out other prompts than a" in warning for warning in found.warnings)
    assert any("the judge is not the same" in warning for warning in found.warnings)


def test_the_page_escapes_what_a_model_wrote_and_asks_nobody_anything(tmp_path: Path) -> None:
    runs = [made(tmp_path / name / "run", AFTER) for name in ("x", "y", "z")]  # three of one name
    found = compare(runs)
    assert [one.name for one in found.runs] == ["x/run", "y/run", "z/run"]
    text = write_page(found, tmp_path / "new" / "page.html").read_text()
    page = Elements(text)
    assert not page.named("script")
    assert not page.named("img")
    assert "alert(1)" in page.words
    assert "http" not in text.replace("http-equiv", "")
    ids = {figure["aria-labelledby"] for figure in page.named("figure")}
    for axis in ("step", "response", "device"):
        assert f"validation-reward-{axis}-title" in ids
    assert {section["id"] for section in page.named("section")} == {
        *("outcome", "settings", "curves", "prompts"),
    }


def test_the_command_prints_a_table_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        made(tmp_path / "a", BEFORE),
        made(tmp_path / "b", AFTER, selection=[{"name": "positive"}]),
    )
    out = tmp_path / "page.html"
    assert status_of(["compare", str(a), str(b), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("b      2  1.0000 ± 0.0000  5.1875 ± ")
    assert "+0.8125 ± 0.2772 (paired, 4 prompts)" in said[2]
    assert said[3].startswith("model.rs.selection: [] | [{")
    assert said[-1] == str(out)
    assert out.is_file()
    assert status_of(["compare", str(a)]) == 2
    assert "two different runs at least" in capsys.readouterr().err
    assert status_of(["compare", str(a), str(tmp_path)]) == 2
    assert "There are runs inside" in capsys.readouterr().err
