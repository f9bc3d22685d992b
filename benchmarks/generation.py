"""How fast the decoder is: side by side with what a user would pick instead, and with the limit.

    python benchmarks/generation.py                  all workloads and opponents, about an hour on one core
    python benchmarks/generation.py --quick          smaller workloads, some minutes
    python benchmarks/generation.py --device cuda    1 and 8 billion parameters on a GPU: see `on_device.py`

Every side decodes the same prompts with the same weights on one thread; sides alternate within a run, and
what counts is the ratio of CPU seconds (user and system), medians over the repeats. The opponents:

    hf         Hugging Face `generate(num_return_sequences=16)`
    hf_forked  the same model, its cache filled once per prompt and repeated, all rows to the end
    megatron   a pass per rollout index through Megatron's forward with its static cache (ancestor's order)
    limit      the matrix products and attention calls of our decoder, on the same shapes, back to back
    torch      our decoder without its compiled kernels
    torch_compiled   the same, through `torch.compile` (only if asked for); what compiling takes is told

Results go to `benchmarks/results/generation.json` beside a table on the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import on_device
import psutil
import torch
import transformers
from decoders import (
    HuggingFace,
    HuggingFaceForked,
    Limit,
    MegatronStatic,
    Ours,
    TorchCompiled,
    Workload,
)

from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.model import runtime

DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data"))
MEDIUM = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def workloads(quick: bool, scratch: Path) -> list[Workload]:
    """The four workloads; `quick` has fewer rollouts and tokens."""
    rng = random.Random(7)
    stories = DATA / "stories260k"
    num_rollouts = 4 if quick else 16
    found = []
    if stories.is_dir():
        tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
        lines = (DATA / "tinystories" / "prompts_train.jsonl").read_text().splitlines()
        prompts = [tuple(tokenizer(json.loads(line)["text"])["input_ids"]) for line in lines[:32]]
        found.append(Workload("a", stories, prompts, num_rollouts, 64 if quick else 256, eos=1))
    else:
        print(f"workload a needs {stories}, which is not there: left out", file=sys.stderr)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**MEDIUM)).save_pretrained(scratch)

    def prompts_of(length: int) -> list[tuple[int, ...]]:
        return [tuple(rng.randrange(3, MEDIUM["vocab_size"]) for _ in range(length)) for _ in range(8)]

    longest = 64 if quick else 256
    tail = [[min(longest, 8 + int(rng.expovariate(1 / 40))) for _ in range(num_rollouts)] for _ in range(8)]
    tail[0][0] = longest
    found += [
        Workload("b", scratch, prompts_of(128), num_rollouts, 16 if quick else 64, None),
        Workload("c", scratch, prompts_of(128), num_rollouts, longest, None, tail),
        Workload("d", scratch, prompts_of(512), num_rollouts, 8 if quick else 32, None),
    ]
    return found


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, Any]]:
    """CPU seconds of each side, the sides in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            began = cpu_seconds()
            tokens[name] = side()
            seconds[name].append(cpu_seconds() - began)
            print(f"    {name:10} {seconds[name][-1]:8.2f} s", file=sys.stderr, flush=True)
    return {name: {"seconds": seconds[name], "tokens": tokens[name]} for name in sides}


def kernel_seconds(ours: Ours) -> float:
    return ours.decoder.network.kernels.seconds if isinstance(ours.decoder, KernelDecoder) else 0.0


def peak(side: Callable[[], int]) -> int:
    """Bytes that a run takes at its peak beyond what the process had before it."""
    before = psutil.Process().memory_info().rss
    side()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def memory(quick: bool, out: Path | None) -> None:
    """Peak memory at workload c, each side in a process of its own, its model loaded before."""
    found = {}
    for side in ("ours", "hf"):
        command = [sys.executable, __file__, "--workloads", "c", "--peak-of", side, *["--quick"] * quick]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    print(f"c: peak memory  ours {found['ours'] / 2**20:,.0f} MiB, hf {found['hf'] / 2**20:,.0f} MiB, "
          f"ours / hf {found['ours'] / found['hf']:.2f}")  # fmt: skip  # a call as it reads
    if out:
        write(out, {"machine": machine(), "quick": quick, "peak_bytes_at_c": found})


def on_gpu(shapes: list[str], repeats: int, out: Path | None) -> None:
    """The comparison on a CUDA device."""
    found = {shape: on_device.compare(shape, "gpu", repeats) for shape in shapes}
    for shape, one in found.items():
        print(f"{shape}: hf {one['hf / ours']:.2f}x   limit {one['share of the limit']:.0%}")
    if out:
        write(out, {"machine": machine(), "results": found})


def write(out: Path, found: dict[str, Any]) -> None:
    """Keep results as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workloads", default="abcd")
    parser.add_argument("--against", default="hf,hf_forked,megatron,limit,torch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", default="1b,8b", help="with --device cuda")
    parser.add_argument("--memory", action="store_true", help="peak memory of ours and hf instead, at c")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # one side, in a process of its own
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    if args.memory:
        memory(args.quick, args.out)
        return
    if args.device == "cuda":
        on_gpu(args.shapes.split(","), args.repeats, args.out)
        return
    torch.set_num_threads(1)
    scratch_cache = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = scratch_cache.name  # so that compiling is measured
    transformers.logging.set_verbosity_error()
    results: dict[str, Any] = {}
    compiling: dict[str, float] = {}  # seconds
    with tempfile.TemporaryDirectory() as scratch, runtime.start(accelerator="cpu") as rt:
        for work in workloads(args.quick, Path(scratch)):
            if work.name not in args.workloads:
                continue
            if args.peak_of == "hf":
                print(json.dumps(peak(HuggingFace(work))))
                return
            ours = Ours(work, rt)
            if args.peak_of == "ours":
                print(json.dumps(peak(ours)))
                return
            makers: dict[str, Callable[[], Callable[[], int]]] = {
                "hf": lambda work=work: HuggingFace(work),
                "hf_forked": lambda work=work: HuggingFaceForked(work),
                "megatron": lambda work=work: MegatronStatic(work, rt),
                "limit": lambda ours=ours: Limit(ours),
                "torch": lambda work=work: Ours(work, rt, compiled=False),
                "torch_compiled": lambda work=work: TorchCompiled(work, rt),
            }
            sides: dict[str, Callable[[], int]] = {"ours": ours}
            sides |= {name: makers[name]() for name in args.against.split(",") if name}
            compiling["kernels"] = max(compiling.get("kernels", 0.0), kernel_seconds(ours))
            if "torch_compiled" in sides:  # the first pass compiles
                first, second = (measure({"": sides["torch_compiled"]}, 1)[""]["seconds"][0] for _ in "12")
                compiling[f"torch.compile at {work.name}"] = first - second
            print(f"workload {work.name}", file=sys.stderr, flush=True)
            results[work.name] = measure(sides, args.repeats)
    table(results)
    for name, seconds in compiling.items():
        print(f"compiling: {name} {seconds:.1f} s")
    if args.out:
        found = {
            "machine": machine(),
            "quick": args.quick,
            "compiling_seconds": compiling,
            "results": results,
        }
        write(args.out, found)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(results: dict[str, Any]) -> None:
    """Ratios to our side: how many times faster ours is; for the limit, the share of it that ours reaches."""
    for name, sides in results.items():
        ours = median(sides["ours"]["seconds"])
        cells = [f"ours {ours:7.2f} s, {sides['ours']['tokens']} tokens"]
        for side, found in sides.items():
            if side != "ours":
                ratio = median(x / y for x, y in zip(found["seconds"], sides["ours"]["seconds"], strict=True))
                cells.append(f"{side} {ratio:.0%}" if side == "limit" else f"{side} {ratio:.2f}x")
        print(f"{name}: " + "   ".join(cells))


if __name__ == "__main__":
    main()
