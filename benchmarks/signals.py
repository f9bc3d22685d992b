"""The signal table: each signal in each phase of a real run, on one and two ranks, and what became of it.

    python benchmarks/signals.py [--out signals.jsonl] [--ranks 1 2] [--only training,SIGTERM]
    python benchmarks/signals.py --ranks 2 --override model.tensor_model_parallel_size=2

A small run on a CPU (a tiny policy made here, a judge that takes its time) is started as users start it. When
its `status.json` says that it is in the phase, it gets the signal. Then: its exit status, the step of its
newest checkpoint, the tokens and micro-batches between the signal and the end, seconds, and whether a process
is left. The same command is then started again and has to finish with the weights of a run that was never
stopped. Left out on purpose: killing (tests/crash), and Slurm (scripts/slurm).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
PHASES = ("starting", "sampling", "scoring", "training", "saving", "validating", "exporting")
# In this folder Python finds `sitecustomize`, which counts what is done behind the signal, and slows phases
# down that would be over before a signal can come.
SITE = """
import os, sys, time

def _slow():
    from rs_aligner import progress, stopping
    counts = {"polls": 0}
    phase, seconds = os.environ["SIGNALS_PHASE"], 3.0
    entered, poll = progress.enter, stopping.poll

    def enter(name, **how):
        entered(name, **how)
        if name == phase and name in ("saving", "exporting") and not counts.get("slowed"):
            counts["slowed"] = True
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.05)

    def polled():
        if phase in ("sampling", "training", "validating") and progress.current().phase == phase:
            time.sleep(0.02)
        asked = poll()
        if asked:
            counts["polls"] += 1
            with open(os.environ["SIGNALS_COUNTS"] + "." + os.environ.get("RANK", "0"), "w") as file:
                file.write(str(counts["polls"]))
        return asked

    progress.enter, stopping.poll = enter, polled

if "SIGNALS_PHASE" in os.environ and sys.argv and "train_rs" in sys.argv[0]:
    _slow()
"""
JUDGE = """
import os, time

def judge(prompts, responses, metadata):
    if os.environ.get("SIGNALS_PHASE") == "scoring":
        time.sleep(0.3)
    return [float(sum(map(ord, response)) % 97) for response in responses]
"""


def make_place(place: Path) -> None:
    """Policy, prompts, judge, and the folder with `sitecustomize`."""
    command = [sys.executable, str(ROOT / "examples/arithmetic/make_task.py"), "--out", str(place / "task")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("train", "validation"):
        lines = (place / "task" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (place / f"{name}.jsonl").write_text("".join(lines[: 48 if name == "train" else 8]))
    (place / "judge.py").write_text(JUDGE)
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").write_text(SITE)


def command(place: Path, folder: Path, ranks: int, overrides: Sequence[str]) -> list[str]:
    """The run: three steps, each validated and saved."""
    return [
        *(sys.executable, str(ROOT / "examples/train_rs.py")),
        f"exp_manager.explicit_log_dir={folder}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={place}/task/policy_start",
        f"model.data.data_prefix.train={place}/train.jsonl",
        f"model.data.data_prefix.validation={place}/validation.jsonl",
        f"remote_rm.judge.function={place}/judge.py:judge",
        *("remote_rm.in_process=true", "remote_rm.max_batch_size=8"),
        *("model.rs.num_rollout_samples=16", "model.rs.length_params.max_length=24"),
        *("model.rs.length_params.min_length=20", "model.global_batch_size=8"),
        *("trainer.rs.val_check_interval=1", "trainer.rs.save_interval=1"),
        *(f"trainer.devices={ranks}", "trainer.accelerator=cpu", *overrides),
    ]


def wait_for(phase: str, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Wait until the run is in a phase, behind the first step where it is one of a step; False if it
    ended."""
    least = 0 if phase in ("starting", "exporting") else 2
    while process.poll() is None:
        try:
            status = json.loads((folder / "status.json").read_text())
        except (OSError, ValueError):
            status = {}
        if status.get("state") == phase and status.get("step", 0) >= least:
            return True
        time.sleep(0.02)
    return False


def run(
    place: Path,
    folder: Path,
    ranks: int,
    phase: str | None,
    name: str | None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Start the run and send it the signal in the phase; what became of it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    counts = folder.with_name(folder.name + "-counts")
    if phase is not None:
        path = os.pathsep.join([str(place / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        env |= {"SIGNALS_PHASE": phase, "SIGNALS_COUNTS": str(counts), "PYTHONPATH": path}
    process = subprocess.Popen(
        command(place, folder, ranks, overrides),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found: dict[str, Any] = {"ranks": ranks, "phase": phase, "signal": name}
    found |= {"overrides": list(overrides)} if overrides else {}
    sent = time.monotonic()
    if phase is not None and name is not None:
        found["reached"] = wait_for(phase, folder, process)
        sent = time.monotonic()
        process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=300)
    checkpoints = sorted((folder / "checkpoints").glob("step_??????"))
    status = json.loads((folder / "status.json").read_text())
    found |= {
        "status": process.returncode,
        "state": status["state"],
        "seconds": round(time.monotonic() - sent, 1),
        "saved": int(checkpoints[-1].name[5:]) if checkpoints else None,
        "final": (folder / "final").is_dir(),
        "partial": [str(path.relative_to(folder)) for path in folder.rglob("*.partial")],
        "polls": [int(path.read_text()) for path in sorted(counts.parent.glob(counts.name + ".*"))],
        "left": len(list(of_run(folder))),
    }
    if process.returncode not in (0, 75):
        found["output"] = output[-2000:]
    return found


def of_run(folder: Path) -> Iterator[psutil.Process]:
    """Processes that have the run's folder in their command line."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            yield process


def digest(folder: Path) -> str:
    """Of the exported weights."""
    return hashlib.sha256((folder / "final" / "model.safetensors").read_bytes()).hexdigest()[:16]


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument(
        "--out", type=Path, help="a file for the rows, as JSON lines; what it has is not run again"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="a phase and a signal: training,SIGTERM")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of the run")
    arguments = parser.parse_args()
    phases, names = PHASES, SIGNALS
    if arguments.only:
        phases, names = ([one] for one in arguments.only.split(","))
    found = set()
    if arguments.out is not None and arguments.out.exists():
        rows = map(json.loads, arguments.out.read_text().splitlines())
        found = {(row["ranks"], row["phase"], row["signal"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        make_place(place)
        for ranks in arguments.ranks:
            through = place / f"through_{ranks}"
            whole = run(place, through, ranks, None, None, arguments.override)
            assert whole["status"] == 0, whole
            for phase in phases:
                for name in names:
                    if (ranks, phase, name) in found:
                        continue
                    folder = place / f"{phase}_{name}_{ranks}"
                    row = run(place, folder, ranks, phase, name, arguments.override)
                    again = row
                    if row["status"] == 75:
                        again = run(place, folder, ranks, None, None, arguments.override)
                    row["again"] = again["status"]
                    row["same"] = digest(folder) == digest(through) if (folder / "final").is_dir() else False
                    print(json.dumps(row), flush=True)
                    if arguments.out is not None:
                        with arguments.out.open("a") as file:
                            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
