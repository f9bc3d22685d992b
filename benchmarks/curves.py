"""What is made of measured curves: each system's mean course over seeds, and what a given score has cost it.

    python benchmarks/curves.py --system trl=runs/trl_1,runs/trl_2,runs/trl_3 --levels 0.85,0.9 --out trl.json

Each folder has the `measured.jsonl` of `measuring.py --curve`. A level is reached where the straight line
between two kept checkpoints first crosses it, so checkpoints should lie close together: on a coarse curve the
line lies above the drift, which grows ever faster. Left out on purpose: smoothing, and fits of any kind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COSTS = ("cpu_seconds", "generated_tokens", "drift")
Row = Mapping[str, Any]


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error; of a single value no error is known."""
    found = {"mean": statistics.fmean(values), "seeds": len(values)}
    if len(values) > 1:
        found["se"] = statistics.stdev(values) / len(values) ** 0.5
    return found


def cost_of(curve: Sequence[Row], level: float) -> dict[str, float] | None:
    """CPU seconds, generated tokens and drift where a curve first reaches a score; None if it does not.

    Args:
        curve: rows in the order of steps, each with `held_out_score` and the three costs.
        level: a held-out score.
    """
    for before, after in itertools.pairwise(curve):
        low, high = before["held_out_score"], after["held_out_score"]
        if low < level <= high:
            share = (level - low) / (high - low)
            return {cost: before[cost] + share * (after[cost] - before[cost]) for cost in COSTS}
    return None


def summary(curves: Sequence[Sequence[Row]], levels: Sequence[float]) -> dict[str, Any]:
    """One system's curves, a seed each, as means with standard errors.

    Args:
        curves: at least one, with the same steps.
        levels: scores whose cost is told.

    Returns:
        `course`: for each step the mean and error of every figure; `to_reach`: for each level the mean and
        error of each cost, or, where some seed does not get there, how many do.

    Raises:
        ValueError: the curves have different steps.
    """
    steps = [[row["step"] for row in curve] for curve in curves]
    if any(some != steps[0] for some in steps):
        raise ValueError(f"the curves of a system should have the same steps, not {steps}; run them alike")
    figures = ("held_out_score", "cross_entropy", *COSTS)
    course = [
        {"step": rows[0]["step"], **{name: mean_and_error([row[name] for row in rows]) for name in figures}}
        for rows in zip(*curves, strict=True)
    ]
    to_reach: dict[str, Any] = {}
    for level in levels:
        costs = [cost for curve in curves if (cost := cost_of(curve, level)) is not None]
        if len(costs) == len(curves):
            to_reach[str(level)] = {name: mean_and_error([cost[name] for cost in costs]) for name in COSTS}
        else:
            to_reach[str(level)] = {"seeds_that_reach_it": len(costs), "seeds": len(curves)}
    return {"course": course, "to_reach": to_reach}


def read(folder: Path) -> list[Row]:
    """The measured curve of a run.

    Raises:
        ValueError: it has not been measured.
    """
    file = folder / "measured.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} is not there; make it with measuring.py --curve {folder / 'curve.jsonl'}")
    return [json.loads(line) for line in file.read_text().splitlines()]


def about(folder: Path) -> dict[str, Any]:
    """What a run says of itself (settings, versions, load), if it does."""
    file = folder / "about.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def shown(name: str, found: Mapping[str, Any]) -> str:
    """A line for each step and level."""

    def cell(value: Mapping[str, float], digits: int) -> str:
        error = f" +- {value['se']:.{digits}f}" if "se" in value else ""
        return f"{value['mean']:.{digits}f}{error}"

    def costs(row: Mapping[str, Any]) -> str:
        return (
            f"CPU {cell(row['cpu_seconds'], 1)} s, tokens {cell(row['generated_tokens'], 0)}, "
            f"drift {cell(row['drift'], 4)}"
        )

    lines = [f"{name}:"]
    for row in found["course"]:
        lines.append(f"  step {row['step']:4}  score {cell(row['held_out_score'], 3)}  {costs(row)}")
    for level, row in found["to_reach"].items():
        told = costs(row) if "drift" in row else f"only by {row['seeds_that_reach_it']} of {row['seeds']}"
        lines.append(f"  to reach {level}: {told}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--system", action="append", required=True, help="NAME=FOLDER,FOLDER,..., a seed each"
    )
    parser.add_argument("--levels", default="0.8,0.85,0.9")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    levels = [float(level) for level in args.levels.split(",")]
    results = {}
    for system in args.system:
        name, _, folders = system.partition("=")
        paths = [Path(folder) for folder in folders.split(",") if folder]
        if not name or not paths:
            parser.error(f"--system {system} should be NAME=FOLDER,FOLDER,...")
        results[name] = summary([read(path) for path in paths], levels)
        results[name]["runs"] = [about(path) for path in paths]
        print(shown(name, results[name]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
