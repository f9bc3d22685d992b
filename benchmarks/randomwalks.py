"""trlX's randomwalks task through `rs_aligner.train`, seed by seed, in trlX's order of selection and others.

    OMP_NUM_THREADS=1 python benchmarks/randomwalks.py --out runs/randomwalks
    OMP_NUM_THREADS=1 python benchmarks/randomwalks.py --out runs/randomwalks --seeds 1 --steps 4    a look

A seed has a graph, random walks, a warm start and a run of its own (`examples/randomwalks/`). What counts is
the optimality of 2,000 walks that the last policy samples. `percentile_first` is `model.rs.rft` as it is; the
others change its selection: `duplicates_first` takes the percentile over the different walks only,
`lowest_too` also keeps the lowest reward of a step where a prompt's percentile comes down to it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "randomwalks.json"
PERCENTILE = {"name": "percentile", "start": 0.7, "end": 0.95}
DUPLICATES = {"name": "duplicates"}
ORDERS: dict[str, list[dict[str, Any]]] = {
    "percentile_first": [],
    "duplicates_first": [DUPLICATES, PERCENTILE],
    "lowest_too": [PERCENTILE, DUPLICATES],
}


def changes(order: str) -> dict[str, Any]:
    """`model.rs.rft` brings a selection of its own, so another one is written with the keys it stands for."""
    if not ORDERS[order]:
        return {}
    return {
        "model.rs.rft": None,
        "model.rs.num_rollouts_per_prompt": 100,
        "model.rs.pool.improve_steps": 2,
        "model.rs.length_params.max_length": 9,
        "model.rs.selection": ORDERS[order],
    }


def one(out: Path, order: str, seed: int, steps: int) -> dict[str, Any]:
    """A run: its optimality before, in between and after, and what its first step kept."""
    sys.path.append(str(ROOT / "examples" / "randomwalks"))
    import train

    from rs_aligner.record.ledger import Ledger

    began = time.process_time()
    _, result = train.run(out / f"{order}_{seed}", seed, steps, **changes(order))
    seconds = time.process_time() - began
    kept = [row.reward for row in Ledger(result.folder / "rollouts").read(1) if row.kept]
    looks = {row["step"]: row["validation/reward"] for row in result.metrics if "validation/reward" in row}
    return {
        "order": order,
        "seed": seed,
        "optimality": looks,
        "kept_in_step_1": len(kept),
        "of_them_with_reward_0": kept.count(0.0),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = []
    for order in args.orders.split(","):
        for seed in range(1, args.seeds + 1):
            runs.append(one(args.out, order, seed, args.steps))
            print(json.dumps(runs[-1]), flush=True)
        last = [run["optimality"][args.steps] for run in runs if run["order"] == order]
        print(f"{order}: {fmean(last):.3f} after {args.steps} steps, the least {min(last):.3f}", flush=True)
    args.results.write_text(
        json.dumps({"steps": args.steps, "load": os.getloadavg(), "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
