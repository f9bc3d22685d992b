"""The memory that a plan names beside what a training allocates: full and adapters, recomputed or kept.

    python benchmarks/planned_memory.py --out benchmarks/results/planned_memory.json

A Llama of a million weights (6 layers, 128 wide), in float32 on a CPU, on one rank, on two replicas, and on
two tensor-parallel ranks: what is held all the time, what a step of rows of 256 tokens takes besides, and
what saving a checkpoint does, in bytes that torch asks for. These are the trainings and the counts of
`tests/policy/test_memory.py`, which holds them to 15 %; here they are a table. Left out on purpose: GPUs,
whose allocator rounds and caches, and the decoder's cache, which is a bound and not a need.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generation import machine, write

from rs_aligner.model import runtime
from tests.policy.planned import RECOMPUTES, beside_the_plan, save_model
from tests.ranks import run_ranks

Found = dict[str, dict[str, tuple[int, int]]]


def measured(folder: Path) -> dict[str, Found]:
    """By layout and way: planned and allocated bytes of each part, on the first rank of the layout."""
    save_model(folder / "model")
    found: dict[str, Found] = {}
    ranks: list[dict[str, Any]] = run_ranks("tests.policy.memory_program", 2, folder)
    with runtime.start(accelerator="cpu") as rt:
        found["one rank"] = {}
        for number, (way, how) in enumerate(RECOMPUTES.items()):
            found["one rank"][way] = beside_the_plan(save_model(folder / str(number)), rt, **how)
    found["two replicas"] = ranks[0]["dp2"]["planned"]
    found["two tensor-parallel ranks"] = ranks[0]["tp2"]["planned"]
    return found


def table(found: dict[str, Found]) -> str:
    """Rows of a Markdown table, in KiB: planned, allocated, and the ratio of the two."""
    lines = []
    for layout, ways in found.items():
        for way, parts in ways.items():
            cells = [
                f"{planned / 1024:,.0f} / {was / 1024:,.0f} ({planned / was:.2f})"
                for planned, was in parts.values()
            ]
            lines.append(f"| {layout} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(Path(scratch))
    print(table(found))
    if args.out:
        write(args.out, {"machine": machine(), "bytes (planned, allocated)": found})


if __name__ == "__main__":
    main()
