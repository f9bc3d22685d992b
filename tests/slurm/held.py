"""Runs with the true trainer and the true judge under a real Slurm that can be met at a known place.

The judge answers so many rows and no more while a file is there, so the run waits for its scores.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from tests.e2e.launch import read_metrics
from tests.slurm.cluster import Cluster

JUDGE = """
import time
from pathlib import Path

asked, hold = 0, Path(__file__).with_name("hold")

def judge(prompts, responses, metadata):
    global asked
    asked += len(prompts)
    while hold.exists() and asked > int(hold.read_text()):
        time.sleep(0.05)
    return [sum(ord(c) < 128 for c in r) / 8 + len(set(r)) / 100 for r in responses]
"""


def write_judge(folder: Path, rows: int | None = None) -> Path:
    """The judge's file, in a new folder; it answers `rows` rows while `hold` is there, None for all."""
    folder.mkdir()
    (folder / "judge.py").write_text(JUDGE)
    if rows is not None:
        (folder / "hold").write_text(str(rows))
    return folder / "judge.py"


def jobs_of(said: str) -> list[str]:
    """The numbers of the jobs that `submit.sh` says it has submitted."""
    return [line.removeprefix("job ") for line in said.splitlines() if line.startswith("job ")]


def num_steps(run: Path) -> int:
    """How many steps a run has done."""
    return len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0


def running(slurm: Cluster, script: str, job: str | None = None) -> list[psutil.Process]:
    """The processes of a job, or of any, that run this script of `examples`."""
    found = []
    for process in slurm.left_behind(job):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if process.cmdline()[1:2] == [f"examples/{script}"]:
                found.append(process)
    return found
