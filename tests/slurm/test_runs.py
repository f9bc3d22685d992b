"""The true trainer and the true judge under a real Slurm: what the jobs come to.

What the scripts do besides is tested with a stand-in (`test_scripts`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import read_metrics
from tests.ports import free_port
from tests.slurm.cluster import Cluster
from tests.slurm.held import jobs_of, num_steps, running, write_judge
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(560)]

STEPS = 6
HELD_ROWS = 40
HELD_STEPS = 2
Submit = Callable[..., str]


@pytest.fixture
def submit(slurm: Cluster, tmp_path: Path) -> Iterator[Submit]:
    """Submits a run into `tmp_path/name`, with its own judge; returns the number of the trainer's job.

    Where the test fails, its jobs would go on, and be started again, for as long as the cluster is there.
    """
    save_tiny_with_tokenizer(tmp_path / "policy")
    prompts = [{"text": f"{number}", "id": f"p{number}"} for number in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))

    def submit(name: str, *arguments: str, ranks: int = 1, is_held: bool = True) -> str:
        judge = write_judge(tmp_path / f"{name}_judge", HELD_ROWS if is_held else None)
        common = f"--signal=B:USR1@90 --output={tmp_path}/{name}.out"
        said = slurm.run(
            *("bash", "scripts/slurm/submit.sh", f"exp_manager.explicit_log_dir={tmp_path / name}"),
            f"pretrained_checkpoint.restore_from_path={tmp_path / 'policy'}",
            f"model.data.data_prefix.train={tmp_path / 'prompts.jsonl'}",
            *("exp_manager.create_tensorboard_logger=false", "model.rs.length_params.max_length=8"),
            *("model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=4"),
            *("model.global_batch_size=4", "trainer.accelerator=cpu", "trainer.threads=1"),
            *(f"trainer.rs.max_steps={STEPS}", "trainer.rs.save_interval=100", "trainer.timeout_minutes=2"),
            *("trainer.rs.val_check_interval=null", *arguments),
            JUDGE_ARGS=f"judge.function={judge}:judge judge.time_limit=null",
            JUDGE_OPTIONS=common,
            TRAINER_OPTIONS=f"--ntasks-per-node={ranks} {common}",
            OMP_NUM_THREADS="1",
            JUDGE_PORT=str(free_port()),
            MASTER_PORT=str(free_port()),
        )
        return jobs_of(said)[-1]

    yield submit
    slurm.cancel_all()


def figures(run: Path) -> list[dict[str, Any]]:
    """The rows of the metrics without times."""
    return [{key: row[key] for key in row if not key.startswith("time/")} for row in read_metrics(run)]


def test_jobs_end_as_they_should_and_leave_nothing(slurm: Cluster, submit: Submit, tmp_path: Path) -> None:
    cut, cancelled, without_judge = submit("cut", ranks=2), submit("cancelled"), submit("without_judge")
    whole = submit("whole", "--two-jobs", ranks=2, is_held=False)

    def wait(name: str) -> None:
        slurm.wait_for(f"steps of {name}", lambda: num_steps(tmp_path / name) >= HELD_STEPS, 300)

    def out(name: str) -> str:
        """What the scripts said; the run has saved what it had trained."""
        checkpoints = tmp_path / name / "checkpoints"
        assert [folder.name for folder in checkpoints.iterdir()] == [f"step_{HELD_STEPS:06d}"]
        return (tmp_path / f"{name}.out").read_text()

    wait("cut")
    slurm.end_soon(cut)  # Slurm's own clock sends the signal
    wait("cancelled")
    slurm.run("scancel", cancelled)
    wait("without_judge")
    [judge] = running(slurm, "serve_reward.py", without_judge)
    judge.kill()

    ended = slurm.end_of(without_judge)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "the judge ended before the trainer, with status 137" in out("without_judge")
    assert slurm.end_of(cancelled)["JobState"] == "CANCELLED"
    assert slurm.restarts(cancelled) == 0
    out("cancelled")

    slurm.wait_for("the requeue", lambda: slurm.restarts(cut) > 0, 120)
    assert "the trainer ended with status 75" in out("cut")
    (tmp_path / "cut_judge" / "hold").unlink()
    slurm.run("scontrol", "update", f"JobId={cut}", "TimeLimit=60")
    slurm.start_again(cut, "its next steps", lambda: num_steps(tmp_path / "cut") > HELD_STEPS, 300)
    for job in (cut, whole):
        ended = slurm.end_of(job)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    assert num_steps(tmp_path / "cut") == STEPS
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    slurm.wait_for("the end of all processes", lambda: not slurm.left_behind(), 30)
