"""What would be submitted, as `submit.sh --dry-run` prints it: without a Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN = "exp_manager.explicit_log_dir=runs/not_there"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.run(
        ["bash", "scripts/slurm/submit.sh", "--dry-run", *arguments],
        cwd=ROOT,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def dry_run(*arguments: str, **variables: str) -> list[list[str]]:
    """The words of each line that is printed."""
    done = run(*arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (ROOT / "runs" / "not_there").exists()
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines()]


def test_one_job_of_two_groups() -> None:
    submitted, judge, trainer = dry_run(
        *(RUN, "model.optim.lr=1e-3"),
        JUDGE_OPTIONS="--time=1:00:00",
        TRAINER_OPTIONS="--time=1:00:00 --nodes=2",
        JUDGE_ARGS="judge.name=exact_answer",
    )
    script = "scripts/slurm/train_rs.sbatch"
    assert submitted == [
        *("sbatch", "--time=1:00:00", ":", "--time=1:00:00", "--nodes=2", script, RUN, "model.optim.lr=1e-3")
    ]
    for step, example in ((judge, "serve_reward.py"), (trainer, "train_rs.py")):
        assert step[0] == "srun"
        assert f"examples/{example}" in step
    assert {"--het-group=0", "judge.name=exact_answer"} <= set(judge)
    assert {"--het-group=1", "model.optim.lr=1e-3", RUN} <= set(trainer)
    assert "inference.token_file=runs/not_there/judge/token" in judge
    assert "remote_rm.token_file=runs/not_there/judge/token" in trainer


def test_two_jobs_of_which_the_trainer_starts_behind_the_judge() -> None:
    first, second, judge, trainer = dry_run(RUN, "a=b", "--two-jobs", JUDGE_ARGS="judge.name=exact_answer")
    script = "scripts/slurm/two_jobs.sbatch"
    assert first == ["sbatch", script, "judge", RUN, "judge.name=exact_answer"]
    assert second == ["sbatch", "--dependency=after:JOB", script, "trainer", RUN, "a=b"]
    assert "judge.name=exact_answer" in judge
    assert not any(word.startswith("--het-group") for word in (*judge, *trainer))
    assert {"a=b", RUN} <= set(trainer)


def test_a_third_group_has_servers_of_rollouts_with_the_trainers_model() -> None:
    model = "pretrained_checkpoint.restore_from_path=some/model"
    given = {"ROLLOUTS_OPTIONS": "--nodes=4", "ROLLOUTS_ARGS": "lora_rank=8"}
    submitted, judge, rollouts, trainer = dry_run(RUN, model, **given)
    assert submitted[:4] == ["sbatch", ":", ":", "--nodes=4"]
    token = "runs/not_there/rollout_servers/token"
    assert {"--het-group=2", model, "lora_rank=8", f"inference.token_file={token}"} <= set(rollouts)
    assert "weights_root=runs/not_there" in rollouts
    assert {"model.rs.generation.engine=vllm", f"model.rs.generation.servers.token_file={token}"} <= set(
        trainer
    )
    [endpoints] = [word for word in trainer if word.startswith("model.rs.generation.endpoints=")]
    port = rollouts[rollouts.index("scripts/slurm/server.sh") + 1]
    assert endpoints.partition("=")[2] == f"[NODE:{port}]"
    assert "runs/not_there/logs/rollouts_NN" in rollouts  # vLLM's own logs
    assert not any("generation" in word for word in judge)
    done = run(RUN, "--two-jobs", **given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: ROLLOUTS_OPTIONS asks for a third group of one job: leave out --two-jobs\n"


@pytest.mark.parametrize(
    ("shown", "size", "place", "own"),
    [
        ("0,1,2,3", None, 0, "0"),
        ("0,1,2,3", None, 3, "3"),
        ("0,1,2,3", 2, 1, "2,3"),
        ("GPU-a,GPU-b", 2, 0, "GPU-a,GPU-b"),
        ("5", None, 3, "5"),  # Slurm shows each task one alone
        (None, None, 1, ""),
    ],
)
def test_servers_of_a_node_share_its_gpus_out(
    shown: str | None, size: int | None, place: int, own: str
) -> None:
    env = {"PATH": os.environ["PATH"], "SLURM_PROCID": "9", "SLURM_LOCALID": str(place)}
    env |= {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    command = ["bash", "scripts/slurm/server.sh", "3000", "logs/rollouts_01"]
    command += ["bash", "-c", 'echo "$CUDA_VISIBLE_DEVICES" "$@"', "serve", "--"]
    command += [] if size is None else [f"vllm.tensor_parallel_size={size}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=30)
    gpus, *given = done.stdout.split(" ")
    assert gpus == own
    assert given[-2:] == ["inference.port=3009", "log_dir=logs/rollouts_01/server_9_1\n"]


@pytest.mark.parametrize("tool", ["pyxis", "apptainer"])
def test_a_container_image_is_one_variable(tool: str, tmp_path: Path) -> None:
    # Neither can be here: stand-ins say what the real ones say of themselves.
    pyxis = "echo '--container-image=IMAGE'" if tool == "pyxis" else ":"
    for name, body in (("srun", pyxis), ("apptainer", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    _, judge, trainer = dry_run(RUN, CONTAINER_IMAGE="our.sif", CONTAINER_MOUNTS="/data", PATH=path)
    for step in (judge, trainer):
        assert ("--container-image=our.sif" in step) is (tool == "pyxis")
        if tool == "pyxis":
            (mounts,) = (word for word in step if word.startswith("--container-mounts="))
            assert mounts.split("=")[1].split(",") == [
                *(f"{ROOT}:{ROOT}", f"{ROOT}/runs/not_there:{ROOT}/runs/not_there", "/data")
            ]
        else:
            assert step[step.index("our.sif") - 1] == "/data"
            assert step[step.index("our.sif") + 1] == "python"  # the image's
    with_gpus = {"TRAINER_OPTIONS": "--gpus-per-node=8", "CONTAINER_IMAGE": "our.sif", "PATH": path}
    *_, trainer = dry_run(RUN, **with_gpus)
    assert ("--nv" in trainer) is (tool == "apptainer")  # though the judge's group has none


def test_a_run_without_a_folder_is_refused() -> None:
    done = run("a=b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: exp_manager.explicit_log_dir=<the run's folder> is missing\n"
