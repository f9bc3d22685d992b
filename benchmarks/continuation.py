"""What it costs that a run can be continued: its own time for that, and a start with a long ledger to read.

    python benchmarks/continuation.py --against ../before

makes runs of stories in turn, of this checkout and of another one with the same packages (one from before
rollouts survived and checkpoints were checked): 8 prompts with 32 rollouts a step, a checkpoint every 10,
judged in the run's own process. The ratio is of CPU seconds, the start included.

    python benchmarks/continuation.py --resume 200000

writes a ledger of so many rollouts (steps of 64 prompts of 90 tokens, 32 rollouts of each of 200 tokens, four
of them kept) into a folder for a while, and measures in a process of its own what a start reads of it: with a
chain that remembers what was trained on (`duplicates`, `against: both`), and a bank. No model is loaded,
which would hide it. CPU seconds are of that process behind its imports; memory is the most it grows by.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROMPTS, ROLLOUTS, KEPT, TOKENS = 64, 32, 4, 200  # of a step, of a prompt, of these, of a rollout


def write_ledger(folder: Path, rollouts: int) -> int:
    """A ledger of so many rollouts, as runs write it; returns its steps."""
    import torch

    from rs_aligner.record.ledger import Ledger
    from rs_aligner.rollout import Group, Prompt, Rollout, Score
    from rs_aligner.selection import Selection

    rng = random.Random(1)
    steps = -(-rollouts // (PROMPTS * ROLLOUTS))
    words = [f"word{number}" for number in range(1000)]
    keep = torch.zeros(PROMPTS, ROLLOUTS, dtype=torch.bool)
    keep[:, :KEPT] = True
    reasons = tuple(tuple("kept" if kept else "not in the top n" for kept in row) for row in keep.tolist())
    selection = Selection(keep, reasons, ("kept", "not in the top n"))

    def rollout(group: int, index: int, step: int) -> Rollout:
        tokens = tuple(rng.randrange(50_000) for _ in range(TOKENS))
        log_probs = tuple(-rng.random() * 4 for _ in range(TOKENS))
        text = " ".join(rng.choices(words, k=TOKENS * 3 // 4))
        return Rollout(group, index, tokens, text, "stop", step - 1, rng.getrandbits(60), log_probs)

    for step in range(1, steps + 1):
        groups = []
        for number in range(PROMPTS):
            question = " ".join(rng.choices(words, k=60))
            row = (step - 1) * PROMPTS + number
            prompt = Prompt(f"train:{row}", question, tuple(range(90)), {"question": question}, row=row)
            scores = [Score(rng.random()) for _ in range(ROLLOUTS)]
            drawn = [rollout(number, index, step) for index in range(ROLLOUTS)]
            groups.append(Group(prompt, drawn, list(scores)))
        Ledger(folder).append(step, groups, selection)
    return steps


def read_back(folder: Path, steps: int) -> dict[str, Any]:
    """What a start reads behind the last of these steps; its cost."""
    from rs_aligner.config import PoolConfig
    from rs_aligner.config.selection import DuplicatesConfig, TopKConfig
    from rs_aligner.record.ledger import Ledger
    from rs_aligner.record.leftovers import Leftovers
    from rs_aligner.selection import build_chain
    from rs_aligner.trainers.pool import Pool

    selectors = [DuplicatesConfig(name="duplicates", against="both"), TopKConfig(name="topk")]
    chain = build_chain(selectors, top_n=4)
    pool = Pool(PoolConfig(max_staleness=2), Any)  # type: ignore[arg-type]  # nothing is sampled
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most memory so far
    rss = _most_memory()
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    left = Leftovers(Ledger(folder), steps)
    pool.restore(pool.remembered(left.ledger, steps), steps)
    for step in range(1, steps + 1):
        chain.restore(left.ledger.kept(step))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (_most_memory() - rss) / 2**10
    return {"cpu_seconds": round(cpu, 2), "seconds": round(time.monotonic() - began, 2), "MiB": round(grown)}


def _most_memory() -> int:
    """The most memory that this process has had, in KiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def resume(rollouts: int, folder: Path) -> None:
    """Write, then read in a fresh process."""
    began = time.monotonic()
    steps = write_ledger(folder, rollouts)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    seconds = time.monotonic() - began
    print(f"{rollouts:,} rollouts, {steps} steps, {size:,.0f} MiB; written in {seconds:.0f} s", flush=True)
    command = [sys.executable, __file__, "--read", str(folder), "--steps", str(steps)]
    print(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout, end="")


def against(before: Path, pairs: int, steps: int) -> None:
    """Make runs of both checkouts in turn; print the ratio of their CPU seconds."""
    spent: dict[Path, list[float]] = {before: [], ROOT: []}
    for _ in range(pairs):
        for root, seconds in spent.items():
            with tempfile.TemporaryDirectory(prefix="continuation_") as folder:
                seconds.append(cpu_of_run(root, Path(folder), steps))
            print(f"{root.name}: {seconds[-1]:.1f} CPU seconds", flush=True)
    ratios = [new / old for old, new in zip(spent[before], spent[ROOT], strict=True)]
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{steps} steps, {pairs} pairs: median ratio {median:.3f} ({least:.3f} to {most:.3f})")


def cpu_of_run(root: Path, folder: Path, steps: int) -> float:
    """The CPU seconds of a whole run of a checkout."""
    data = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    arguments = [
        *("--config-name", "stories", "+remote_rm.judge.name=sentiment", "remote_rm.in_process=true"),
        *("exp_manager.create_tensorboard_logger=false", f"exp_manager.explicit_log_dir={folder / 'run'}"),
        *("model.rs.num_rollout_samples=8", "model.rs.num_rollouts_per_prompt=32"),
        *(f"trainer.rs.max_steps={steps}", "trainer.rs.save_interval=10"),
        "trainer.rs.val_check_interval=null",
    ]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "RS_ALIGNER_TEST_DATA": str(data)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, str(root / "examples" / "train_rs.py"), *arguments],
        check=True,
        cwd=root,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=1200,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--resume", type=int, metavar="ROLLOUTS", help="the cost of a start with such a ledger"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the cost of a run beside its")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--run-steps", type=int, default=40, help="steps of each run")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read is not None:
        print(json.dumps(read_back(asked.read, asked.steps)))
    elif asked.resume is not None:
        with tempfile.TemporaryDirectory(prefix="ledger_") as folder:
            resume(asked.resume, Path(folder))
    elif asked.against is not None:
        against(asked.against.resolve(), asked.pairs, asked.run_steps)
    else:
        parser.error("nothing to measure: --resume 200000, or --against CHECKOUT")


if __name__ == "__main__":
    main()
