"""The scripts of `scripts/slurm` under a real Slurm, with a stand-in for trainer and judge (`stand_in`)."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster
from tests.slurm.held import jobs_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Submit = Callable[..., list[str]]


@pytest.fixture
def submit(slurm: Cluster, fake_python: str, tmp_path: Path) -> Iterator[Submit]:
    """Submits a run of two ranks; returns the jobs' numbers. What a failed test leaves is ended."""

    def submit(
        run: Path,
        *overrides: str,
        two_jobs: bool = False,
        judge_args: str = "judge.name=some",
        rollouts: str | None = None,
    ) -> list[str]:
        third = {} if rollouts is None else {"ROLLOUTS_OPTIONS": "--nodes=2", "ROLLOUTS_ARGS": rollouts}
        said = slurm.run(
            *("bash", "scripts/slurm/submit.sh", f"exp_manager.explicit_log_dir={run}", *overrides),
            *(["--two-jobs"] if two_jobs else []),
            PYTHON=fake_python,
            JUDGE_ARGS=judge_args,
            JUDGE_OPTIONS=f"--output={tmp_path}/%j.out",
            TRAINER_OPTIONS=f"--ntasks-per-node=2 --output={tmp_path}/%j.out",
            STARTUP_TIMEOUT="120",
            LEAVE_SECONDS="10",
            **third,
        )
        return jobs_of(said)

    yield submit
    slurm.cancel_all()


def steps(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def log_of(run: Path, name: str, attempt: int) -> Path:
    return run / "logs" / f"{name}_{attempt:02d}.log"


def test_a_run_is_requeued_ahead_of_its_limit_until_it_is_finished(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    (uninterrupted,) = submit(whole, "steps=30")
    (job,) = submit(cut, "steps=30", "pace=0.2", "slow_save=2")
    for attempt in (2, 3):
        before = len(steps(cut))
        slurm.wait_for("steps", lambda before=before: len(steps(cut)) > before + 1)
        slurm.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does by --signal=B:USR1@...
        slurm.start_again(job, f"attempt {attempt}", log_of(cut, "trainer", attempt).exists)
    assert slurm.end_of(job)["JobState"] == "COMPLETED"
    assert slurm.end_of(uninterrupted)["JobState"] == "COMPLETED"
    for rank in (0, 1):
        assert (cut / f"final_{rank}").read_text() == (whole / f"final_{rank}").read_text()
    assert steps(cut) == list(range(1, 31))
    logs = sorted(path.name for path in (cut / "logs").glob("*.log"))
    assert logs == [f"{name}_0{attempt}.log" for name in ("judge", "trainer") for attempt in (1, 2, 3)]
    for attempt in (1, 2):  # the first rank to end let the slower one save
        said = log_of(cut, "trainer", attempt).read_text()
        assert "rank 0 saved" in said
        assert "rank 1 saved" in said
    assert "begins at step 0" not in log_of(cut, "trainer", 3).read_text()
    assert stat.S_IMODE((cut / "judge" / "token").stat().st_mode) == 0o600
    out = (tmp_path / f"{job}.out").read_text()
    assert out.count("attempt of job") == 3  # appended, not written over
    assert slurm.left_behind() == []


def test_the_jobs_status_is_the_trainers_and_only_75_goes_back_into_the_queue(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    jobs = {
        status: submit(tmp_path / f"ends_{status}", f"ends={status}", "fails_at=2")[0] for status in (0, 1, 2)
    }
    (idle,) = submit(tmp_path / "idle", "ends=75", "fails_at=0")
    (lost,) = submit(tmp_path / "lost", "steps=1000", judge_args="judge.name=no_such")
    for status, job in jobs.items():
        ended = slurm.end_of(job)
        assert (ended["ExitCode"], ended["Restarts"]) == (f"{status}:0", "0")
    for job, reason in (
        (idle, "before it had done anything: it needs a longer --time"),
        (lost, "the judge ended before the trainer, with status 1"),
    ):
        ended = slurm.end_of(job)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0")
        assert reason in (tmp_path / f"{job}.out").read_text()
    assert "there is no such judge" in (tmp_path / f"{lost}.out").read_text()  # the end of its log
    assert "so it should" in (tmp_path / f"{jobs[1]}.out").read_text()
    assert slurm.left_behind() == []


def test_two_jobs_find_each_other_and_a_judge_that_leaves_is_waited_for(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "judge").mkdir(parents=True)
    address = run / "judge" / "address"
    address.write_text("127.0.0.9 9 4000000 0\n")  # of a job that is gone
    judge, trainer = submit(run, "steps=40", "pace=0.2", two_jobs=True)
    slurm.wait_for("steps", lambda: len(steps(run)) > 1)
    assert address.read_text().split()[2:] == [judge, "0"]
    slurm.run("scancel", "--batch", "--signal=USR1", judge)  # its time limit is near
    slurm.start_again(judge, "the next judge's trainer", log_of(run, "trainer", 2).exists)
    assert address.read_text().split()[2:] == [judge, str(slurm.restarts(judge))]
    ended = slurm.end_of(trainer)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")  # it waited, and kept its nodes
    assert (
        slurm.end_of(judge)["JobState"] == "COMPLETED"
    )  # told by the trainer that it is not needed any more
    assert not address.exists()
    assert steps(run) == list(range(1, 41))
    logs = sorted(path.name for path in (run / "logs").glob("*.log"))
    assert logs == [f"{name}_0{attempt}.log" for name in ("judge", "trainer") for attempt in (1, 2)]
    out = (tmp_path / f"{trainer}.out").read_text()
    assert "of job 4000000, which does not run any more" in out or "there is no" in out
    assert slurm.left_behind() == []


def test_a_job_that_is_cancelled_saves_is_not_requeued_and_leaves_nothing(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (job,) = submit(run, "steps=1000", "pace=0.2")
    slurm.wait_for("steps", lambda: len(steps(run)) > 1)
    slurm.run("scancel", job)
    assert slurm.end_of(job)["JobState"] == "CANCELLED"
    slurm.wait_for("the end of its processes", lambda: not slurm.left_behind(), 30)
    assert "rank 1 saved" in log_of(run, "trainer", 1).read_text()
    assert slurm.job(job)["Restarts"] == "0"


def test_servers_of_rollouts_are_found_by_name_and_end_with_the_trainer(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    """Also where they break: one that comes back is used again, and where all are gone the run is over."""
    model = "pretrained_checkpoint.restore_from_path=model"
    runs = {name: tmp_path / name for name in ("whole", "back", "gone", "failed")}
    (whole,) = submit(runs["whole"], model, rollouts="vllm.seed=1")
    (back,) = submit(runs["back"], model, "steps=60", "pace=0.1", rollouts="breaks=1")
    (gone,) = submit(runs["gone"], model, "steps=1000", "pace=0.1", rollouts="breaks=2")
    (failed,) = submit(runs["failed"], model, "ends=2", "fails_at=1", rollouts="vllm.seed=1")
    for job, state, code in (
        (whole, "COMPLETED", "0:0"),
        (back, "COMPLETED", "0:0"),
        (gone, "FAILED", "1:0"),
        (failed, "FAILED", "2:0"),
    ):
        ended = slurm.end_of(job)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == (state, code, "0"), slurm.state()
    for run in runs.values():
        said = log_of(run, "trainer", 1).read_text()
        assert sum(f"rollouts from {node}\n" in said for node in NODES) == 2
        assert stat.S_IMODE((run / "rollout_servers" / "token").stat().st_mode) == 0o600
    assert log_of(runs["back"], "rollouts", 1).read_text().count("it is started again") == 2
    assert "rank 1 saved" in log_of(runs["gone"], "trainer", 1).read_text()
    out = (tmp_path / f"{gone}.out").read_text()
    assert "the servers of rollouts ended before the trainer, with status 2" in out
    assert "so it should" in out
    slurm.wait_for("the end of all processes", lambda: not slurm.left_behind(), 30)
