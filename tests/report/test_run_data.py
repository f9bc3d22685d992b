"""A run's folder is read as it is, also while the run goes on, and a folder that is none is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from rs_aligner.record.format import RunRecord
from rs_aligner.record.ledger import step_name
from rs_aligner.report.run_data import NotARun, RunData, open_run
from rs_aligner.rollout import Prompt, Rollout
from tests.fake_run import FakeRun, Result, by_tokens


class Rewards(msgspec.Struct):
    reward: float | None
    kept: bool


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    run = FakeRun(tmp_path_factory.mktemp("runs") / "mine")
    run.start(steps=3, interval=2)
    return run


def test_a_finished_run_is_read_without_a_trace(finished: FakeRun) -> None:
    before = contents(finished.folder)
    run = open_run(finished.folder)
    assert (run.kind, run.name) == ("train_rs", "mine")
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3]
    assert (run.steps(), run.held_out_steps()) == ([1, 2, 3], [0, 2, 3])
    for step in run.steps():
        assert list(run.rows(step)) == finished.ledger.read(step)
        light = list(run.rows_as(step_name(step), msgspec.json.Decoder(Rewards)))
        assert [(row.reward, row.kept) for row in light] == [(r.reward, r.kept) for r in run.rows(step)]
    assert {row.prompt_id for row in run.held_out_rows(2)} == {"v0", "v1", "v2", "v3"}
    assert run.open_step() is None
    assert run.open_rows() == []
    assert contents(finished.folder) == before


def test_a_run_is_read_while_it_goes_on(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    seen: list[RunData] = []

    def look() -> None:  # behind the selection of step 2, whose row of metrics comes later
        found = open_run(tmp_path)
        if len(found.steps()) == 2:
            assert [row["step"] for row in found.metrics()] == [1]
            assert len(list(found.rows(2))) == 8  # what is left of the prompts: two
            seen.append(found)

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        if rollout.policy_version == 1 and not seen:
            found = open_run(tmp_path)
            if len(found.open_rows()) == 3:
                file = next((tmp_path / "rollouts" / "step_000002.open").iterdir())
                whole = file.read_bytes()
                file.write_bytes(whole[:-5])  # as if the last line were being written
                assert (found.open_step(), found.steps(), len(found.open_rows())) == (2, [1], 2)
                file.write_bytes(whole)
        return by_tokens(prompt, rollout)

    run.start(score, steps=2, interval=None, before_train=look, answers_by=1)
    assert seen


def test_a_missing_step_and_a_damaged_one_are_named(finished: FakeRun, tmp_path: Path) -> None:
    run = open_run(finished.folder)
    with pytest.raises(
        ValueError, match=r"step_000007.jsonl is not there; .* has step_000001, step_000002, step_000003$"
    ):
        run.rows(7)
    record = RunRecord("train_rs")
    record.write(tmp_path)
    (tmp_path / "rollouts").mkdir()
    line = run.ledger_path(1).read_bytes().replace(b"text ", b"Text ", 1)
    (tmp_path / "rollouts" / "step_000001.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match=r"step_000001.jsonl:1: not a row of a ledger as it was written"):
        list(open_run(tmp_path).rows(1))


def test_a_run_that_has_just_begun_has_nothing_yet(tmp_path: Path) -> None:
    RunRecord("train_sft").write(tmp_path)
    run = open_run(tmp_path)
    assert (run.kind, run.metrics(), run.steps(), run.held_out_steps()) == ("train_sft", [], [], [])
    assert (run.config, run.attempts(), run.status(), run.open_rows()) == ({}, [], {}, [])
    (tmp_path / "status.json").write_text('{"state": "loading"}')
    assert run.status() == {"state": "loading"}


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        ("a/run.json", ".", "has no run.json. There is a run inside: a"),
        ("a/run.json b/run.json", ".", "There are runs inside: a, b"),
        ("a/b/run.json", ".", "There is a run inside: a/b"),
        ("a/run.json a/rollouts/x", "a/rollouts", "It is inside a run: a"),
        (
            "a/run.json",
            "a/run.json",
            "run.json is a file, and not the folder of a run. It is inside a run: a",
        ),
        ("a/b", "a", "has no run.json. Name what exp_manager.explicit_log_dir was"),
        ("a/b", "a/c/d", "a/c/d does not exist; a does"),
        ("a/rollouts/x", "a", "beside its rollouts/; it is lost, or an earlier rs_aligner made"),
    ],
)
def test_a_folder_that_is_no_run_is_told_and_what_may_have_been_meant(
    there: str, asked: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in there.split():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    with pytest.raises(NotARun) as error:
        open_run(asked)
    assert told in str(error.value)


def test_a_run_of_another_command_or_format_is_refused(tmp_path: Path) -> None:
    RunRecord("bake_bread").write(tmp_path)
    with pytest.raises(NotARun, match="bake_bread, and not by one of: train_rs, train_sft"):
        open_run(tmp_path)
    replace(RunRecord("train_rs"), format=99).write(tmp_path)
    with pytest.raises(ValueError, match="has format 99"):
        open_run(tmp_path)
