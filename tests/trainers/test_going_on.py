"""Each end of a run from which a new start goes on says so, and from where; the start then does that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner import progress, stopping
from rs_aligner.exit_status import FAILED, TO_BE_MENDED, to_be_done
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Prompt, Rollout, ScoreFailure
from rs_aligner.sample_request import SampleRequest, SamplingFailed
from rs_aligner.trainers import agreement
from rs_aligner.trainers.failures import RanksDiffer
from tests.fake_run import FakePolicy, FakeRun, Result, by_tokens

pytestmark = pytest.mark.timeout(60)
End = Callable[[int, pytest.MonkeyPatch], dict[str, Any]]


def no_judge(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def score(prompt: Prompt, rollout: Rollout) -> Result:
        failed = rollout.policy_version >= step - 1
        return ScoreFailure("gone") if failed else by_tokens(prompt, rollout)

    return {"score": score}


def no_judge_in_a_validation(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The one behind the step before."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        failed = prompt.id.startswith("v") and rollout.policy_version == step - 1
        return ScoreFailure("gone") if failed else by_tokens(prompt, rollout)

    return {"score": score, "interval": 1}


def no_servers(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    generate = FakePolicy.generate

    def sampled(policy: FakePolicy, request: SampleRequest) -> Iterator[Rollout]:
        if request.step == step:
            raise SamplingFailed("no server answers")
        return generate(policy, request)

    monkeypatch.setattr(FakePolicy, "generate", sampled)
    return {}


def ranks_that_differ(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def check(policy: FakePolicy, number: int, *rest: Any) -> Any:
        if number == step:
            raise RanksDiffer(f"step {number} differs")
        return agreement.check_step(policy, number, *rest)

    monkeypatch.setattr("rs_aligner.trainers.rs.check_step", check)
    return {}


def asked_to_stop(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def ask() -> None:
        if progress.current().step == max(step - 1, 1):
            stopping.ask("SIGTERM")

    return {"before_train": ask}


def a_full_disk(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def fail() -> None:
        if progress.current().step == step:
            raise OSError(errno.ENOSPC, "No space left on device", "rollouts")

    return {"before_train": fail}


SAVED = [
    (no_judge, JudgeFailed),
    (no_judge_in_a_validation, JudgeFailed),
    (no_servers, SamplingFailed),
    (ranks_that_differ, RanksDiffer),
    (asked_to_stop, stopping.Stopped),
]
"""Ends that save what was done, with what is raised."""


def ended(run: FakeRun, end: End, step: int, error: type[BaseException]) -> BaseException:
    with pytest.MonkeyPatch.context() as monkeypatch:
        settings = {"interval": None, **end(step, monkeypatch)}
        with pytest.raises(error) as found:
            run.start(steps=5, save_interval=2, **settings)
    return found.value


@pytest.mark.parametrize(("end", "error"), SAVED, ids=lambda one: one.__name__)
def test_an_end_that_saves_says_behind_which_step_the_run_goes_on_and_it_does(
    end: End, error: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every second step is saved anyway, and this is the one behind the third."""
    run = FakeRun(tmp_path / "run")
    last = run.folder / "checkpoints" / "step_000003"
    told = to_be_done(ended(run, end, 4, error), FAILED)
    assert told == f"; start the same command again: the run goes on behind step 3 ({last})"
    with caplog.at_level("INFO", "rs_aligner"):
        run.start(steps=5, interval=None)
    assert f"continuing behind step 3 of {last}" in caplog.text


@pytest.mark.parametrize(("end", "error"), SAVED[:-1], ids=lambda one: one.__name__)
def test_an_end_in_the_first_step_says_that_there_is_no_checkpoint(
    end: End, error: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(tmp_path / "run")
    told = to_be_done(ended(run, end, 1, error), FAILED)
    where = "from the beginning, since it has no checkpoint"
    assert told == f"; start the same command again: the run goes on {where}"
    with caplog.at_level("INFO", "rs_aligner"):
        run.start(steps=2, interval=None)
    assert "continuing behind" not in caplog.text
    assert [row["step"] for row in run.rows if row["step"]] == [1, 2]


def test_what_ends_a_run_without_a_save_names_the_last_one(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    told = to_be_done(ended(run, a_full_disk, 4, OSError), TO_BE_MENDED)
    last = run.folder / "checkpoints" / "step_000002"
    assert told == f"; mend that and start again: the run goes on behind step 2 ({last})"


def test_ranks_that_start_from_different_data_are_promised_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has a checkpoint, and no start goes on with such data."""
    run = FakeRun(tmp_path / "run")
    run.start(steps=1)

    def differ(*_: Any) -> None:
        raise RanksDiffer("the prompts are not the same on all ranks")

    monkeypatch.setattr("rs_aligner.trainers.rs.check_inputs", differ)
    with pytest.raises(RanksDiffer) as error:
        run.start(steps=2)
    assert to_be_done(error.value, FAILED) == ""
