"""What the automatic number of threads costs and gains beside one thread, on this machine.

    python benchmarks/threads.py                 the three lines, some ten minutes on two idle cores
    python benchmarks/threads.py --quick         fewer repeats and tokens
    python benchmarks/threads.py --crossover     where a second torch thread begins to pay in training

The lines, sides in turn within a run, medians of the ratios over the repeats:

    stories    a step of `examples/conf/stories.yaml` at default settings, but the first; wall time of it,
               of its generation and of its training
    b          decoding of the 27 M shape, workload b of `generation.py`; wall time
    busy       a run of stories beside a process that keeps a core busy; CPU seconds (user and system)

`--lines` picks some. `idle` in the results is the share of the cores that nobody used in the five seconds
before: well below 1 the wall times mean little. Results go to `--out` as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rs_aligner.threads import SPINS, Threads, usable_cores

os.environ["OMP_NUM_THREADS"] = str(usable_cores())  # before torch; generation.py would set 1
os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # as the scripts do
import psutil
import torch
import transformers
from decoders import Ours
from generation import DATA, machine, workloads, write

from rs_aligner.config import OptimConfig
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import _largest_part
from rs_aligner.policy.batches import Split
from rs_aligner.policy.training import Trainer, adam
from rs_aligner.rollout import TrainingRow

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"one thread": "1", "automatic": "null"}
WIDTHS, SHAPES = (64, 128, 192, 256, 384, 512), ((4, 64), (16, 64), (16, 128))


def stories(threads: str, steps: int, folder: Path) -> dict[str, float]:
    """A run of stories in a process of its own; its CPU seconds and the medians of its steps' times."""
    command = [
        *(sys.executable, str(ROOT / "examples/train_rs.py"), "--config-name", "stories"),
        *(f"exp_manager.explicit_log_dir={folder}", "exp_manager.create_tensorboard_logger=false"),
        *("remote_rm.in_process=true", "+remote_rm.judge.name=sentiment", f"trainer.threads={threads}"),
        *(f"trainer.rs.max_steps={steps}", "trainer.rs.val_check_interval=null"),
    ]
    environment = {**os.environ, "RS_ALIGNER_TEST_DATA": str(DATA.resolve())}
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT"):
        environment.pop(name)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the run ended with status {os.waitstatus_to_exitcode(status)}: {command}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [row for row in rows if row["step"] > 1]
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        **{name: median(row[f"time/{name}"] for row in later) for name in ("step", "generate", "train")},
    }


def runs_of_stories(repeats: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Runs of both sides, in turn."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, threads in SIDES.items():
            with tempfile.TemporaryDirectory() as folder:
                found[side].append(stories(threads, steps, Path(folder) / "run"))
            shown = "  ".join(f"{name} {value:.2f} s" for name, value in found[side][-1].items())
            print(f"    {side:10}  {shown}", file=sys.stderr, flush=True)
    return found


def decoding(repeats: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    """Workload b on one thread and on all, in turn."""
    sides = {
        "one thread": Threads(1, chosen=False),
        "automatic": Threads(usable_cores(), chosen=False),
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as scratch, runtime.start(accelerator="cpu") as rt:
        (work,) = (work for work in workloads(quick, Path(scratch)) if work.name == "b")
        decoders = {side: Ours(work, replace(rt, threads=threads)) for side, threads in sides.items()}
        for repeat in range(repeats + 1):  # the first warms up
            for side, decode in decoders.items():
                began, cpu = time.perf_counter(), time.process_time()
                decode()
                took = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
                print(f"    {side:10}  {took['wall']:.2f} s, CPU {took['cpu']:.2f} s", file=sys.stderr)
                if repeat:
                    found[side].append(took)
    return found


@contextmanager
def busy_core() -> Iterator[None]:
    """A process beside that keeps the last of the usable cores busy."""
    core = max(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Automatic to one thread: medians over the pairs, by figure."""
    pairs = list(zip(found["automatic"], found["one thread"], strict=True))
    return {name: median(auto[name] / one[name] for auto, one in pairs) for name in pairs[0][0]}


def idle_share() -> float:
    """The share of the cores that nobody used in the last five seconds."""
    return 1.0 - psutil.cpu_percent(interval=5) / 100


def crossover(seconds: float) -> list[dict[str, float]]:
    """The gradient of a micro-batch on one torch thread and on all, the shortest time of many in turn."""
    found, most = [], usable_cores()
    with runtime.start(accelerator="cpu") as rt:
        for width in WIDTHS:
            trainer = _trainer(width, rt)
            for rows, length in SHAPES:
                batch = [TrainingRow((1,) * 8, tuple(range(length - 8))) for _ in range(rows)]
                best = dict.fromkeys((1, most), float("inf"))
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    for threads in best:
                        trainer.runtime = replace(rt, threads=Threads(threads, chosen=True))
                        began = time.perf_counter()
                        trainer.gradients(batch, split=Split(rows))
                        best[threads] = min(best[threads], time.perf_counter() - began)
                millions = _largest_part(trainer.ddp.module) * rows * length / 1e6
                one = {"width": width, "tokens": rows * length, "millions": millions}
                found.append({**one, "one": best[1], "all": best[most]})
                print(
                    f"width {width:4}  {rows * length:5} tokens  {millions:7.0f} million multiplications  "
                    f"one thread {best[1] * 1e3:7.1f} ms  {most} threads {best[most] / best[1]:.2f}",
                    flush=True,
                )
    return found


def _trainer(width: int, rt: runtime.Runtime) -> Trainer:
    """A trainer of three layers, with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        arch = read_architecture(Path(folder))
        made = transformer_config(arch, rt, dtype=torch.float32)
        model = build_model(arch, made, rt)
        huggingface.load_weights(Path(folder), model, arch, rt)
    return Trainer(model, made, rt, adam(OptimConfig(), dtype=torch.float32, clip_grad=1.0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lines", default="stories,b,busy")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    about = {**machine(), "threads": usable_cores(), "idle": round(idle_share(), 2)}
    if args.crossover:
        pieces = crossover(2 if args.quick else 10)
        if args.out:
            write(args.out, {"machine": about, "crossover": pieces})
        return
    repeats, steps = args.repeats or (1 if args.quick else 3), 2 if args.quick else 4

    def busy() -> dict[str, list[dict[str, float]]]:
        with busy_core():
            return runs_of_stories(repeats, steps)

    lines: dict[str, tuple[Callable[[], dict[str, list[dict[str, float]]]], str, str]] = {
        "stories": (lambda: runs_of_stories(repeats, steps), "step", "wall time of a step, at most 1"),
        "b": (lambda: decoding(repeats, args.quick), "wall", "wall time, at most 0.6 on two cores"),
        "busy": (busy, "cpu", "CPU seconds of a run, at most 1.15"),
    }
    found: dict[str, Any] = {}
    for name in args.lines.split(","):
        measure, figure, what = lines[name]
        print(name, file=sys.stderr, flush=True)
        sides = measure()
        found[name] = {"ratios": ratios(sides), "sides": sides}
        first = found[name]["ratios"].pop(figure)
        rest = "  ".join(f"{key} {value:.2f}" for key, value in found[name]["ratios"].items())
        found[name]["ratios"] = {figure: first, **found[name]["ratios"]}
        print(f"{name}: automatic / one thread {first:.2f}   ({what})   {rest}", flush=True)
    if args.out:
        write(args.out, {"machine": about, "quick": args.quick, "results": found})


if __name__ == "__main__":
    main()
