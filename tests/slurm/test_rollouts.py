"""A real vLLM in the third group of a job, with the true trainer and judge, under a real Slurm.

It is found by its node's name, waited for, takes weights by the run's folder, and ends with the trainer:
where that crashes, where the job is cancelled, and where the run is finished. What the scripts do besides is
tested with stand-ins (`test_scripts`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.launch import read_metrics
from tests.ports import free_port
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.held import jobs_of, num_steps, running, write_judge
from tests.vllm_server import STORIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = 16  # of a step
AGREES = 1e-4  # of mismatch/p99, in nats, as in tests/e2e/test_vllm_training.py
Submit = Callable[[str], str]


@pytest.fixture
def submit(slurm: Cluster, vllm_python: Path, test_data: Path, tmp_path: Path) -> Iterator[Submit]:
    """Submits a run, or lets it go on; returns its job's number. What a failed test leaves is ended."""

    def submit(name: str) -> str:
        options = f"--output={tmp_path}/{name}.out"
        said = slurm.run(
            *("bash", "scripts/slurm/submit.sh", f"exp_manager.explicit_log_dir={tmp_path / name}"),
            f"pretrained_checkpoint.restore_from_path={test_data / STORIES}",
            f"model.data.data_prefix.train={test_data / 'tinystories' / 'prompts_train.jsonl'}",
            *("exp_manager.create_tensorboard_logger=false", "model.rs.length_params.max_length=16"),
            *("model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=4"),
            *("model.global_batch_size=4", "model.optim.lr=3e-3", "trainer.rs.max_steps=2"),
            "trainer.rs.val_check_interval=null",
            JUDGE_ARGS=f"judge.function={tmp_path / 'judge' / 'judge.py'}:judge judge.time_limit=null",
            JUDGE_OPTIONS=options,
            TRAINER_OPTIONS=f"--cpus-per-task=1 {options}",
            ROLLOUTS_OPTIONS=f"--cpus-per-task=1 {options}",
            ROLLOUTS_ARGS="vllm.cpu_cache_gib=1 vllm.threads=1 vllm.max_length=512",
            RS_ALIGNER_VLLM_PYTHON=str(vllm_python),
            OMP_NUM_THREADS="1",
            **{name: str(free_port()) for name in ("JUDGE_PORT", "MASTER_PORT", "ROLLOUTS_PORT")},
        )
        [job] = jobs_of(said)
        return job

    yield submit
    slurm.cancel_all()


def vllms(slurm: Cluster) -> list[psutil.Process]:
    """The processes of vLLM that there are."""
    found = []
    for process in slurm.left_behind():
        with contextlib.suppress(psutil.Error):
            if {"vllm.entrypoints.openai.api_server", "VLLM::EngineCore"} & set(process.cmdline()):
                found.append(process)
    return found


def test_a_real_vllm_serves_a_job_and_ends_with_its_trainer(
    slurm: Cluster, submit: Submit, tmp_path: Path
) -> None:
    def log_of(name: str, attempt: int) -> str:
        path = tmp_path / "run" / "logs" / f"{name}_{attempt:02d}.log"
        return path.read_text() if path.exists() else ""

    def until(what: str, holds: Callable[[], object]) -> None:
        """Wait for it; the token is on no process's command line meanwhile."""

        def look() -> object:
            token = (tmp_path / "run" / "rollout_servers" / "token").read_text()
            assert len(token) == 48
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    assert not any(token in word for word in process.cmdline()), process.cmdline()
            return holds()

        slurm.wait_for(what, look, 300)

    def is_over(job: str, state: str, code: str | None = None) -> None:
        ended = slurm.end_of(job)
        assert (ended["JobState"], ended["ExitCode"]) == (state, code or ended["ExitCode"]), slurm.state()
        slurm.wait_for("the end of all processes", lambda: not slurm.left_behind(), 40)

    write_judge(tmp_path / "judge", rows=ROWS + ROWS // 2)  # and those by which it is tried out
    crashes = submit("run")
    slurm.wait_for("vLLM, which starts", lambda: vllms(slurm) and running(slurm, "train_rs.py"), 60)
    [trainer] = running(slurm, "train_rs.py")
    trainer.kill()
    is_over(crashes, "FAILED", "1:0")

    cancelled = submit("run")
    until("the weights of the second step", lambda: "weights of version 1" in log_of("trainer", 2))
    assert vllms(slurm)
    slurm.run("scancel", cancelled)
    is_over(cancelled, "CANCELLED")
    assert num_steps(tmp_path / "run") == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]

    (tmp_path / "judge" / "hold").unlink()
    finished = submit("run")
    until("the end", lambda: slurm.job(finished)["JobState"] in ("COMPLETED", "FAILED"))
    is_over(finished, "COMPLETED", "0:0")
    for attempt in (2, 3):
        assert any(f"vLLM at http://{node}:" in log_of("trainer", attempt) for node in NODES)
        assert "(vLLM " in log_of("rollouts", attempt)
        assert "with a token" in log_of("rollouts", attempt)
    for step, figures in enumerate(read_metrics(tmp_path / "run"), start=1):
        path = tmp_path / "run" / "rollouts" / f"step_{step:06d}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == len({(row["group"], row["index"]) for row in rows}) == ROWS
        assert {row["policy_version"] for row in rows} == {step - 1}
        assert figures["mismatch/p99"] < AGREES
        assert figures["time/weights"] > 0
    assert not (tmp_path / "run" / "weights").exists()
