"""What the reports cost the quickstart: CPU seconds of its two trainings, with them and without.

    python benchmarks/quickstart_report.py [--repeats 3] [--out results.json]

The trainings are those of `scripts/quickstart.sh`, but for the judge, which is in the process; with and
without alternate. CPU seconds are user and system, of the process and what it starts; the medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAININGS = {
    "sft": ("train_sft.py", "--config-name", "arithmetic_sft"),
    "rs": (
        *("train_rs.py", "--config-name", "arithmetic"),
        *("remote_rm.in_process=true", "remote_rm.judge.name=exact_answer"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the reports cost the quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    how = parser.parse_args(arguments)
    found: dict[str, dict[str, list[float]]] = {name: {"true": [], "false": []} for name in TRAININGS}
    for _ in range(how.repeats):
        for report in ("true", "false"):
            with tempfile.TemporaryDirectory() as place:
                run(Path(place), "arithmetic/make_task.py", "--out", f"{place}/task")
                for name, (script, *rest) in TRAININGS.items():
                    seconds = run(Path(place), script, *rest, f"exp_manager.report={report}")
                    found[name][report].append(seconds)
                assert (Path(place) / "rs" / "report.html").exists() == (report == "true")
    for name, both in found.items():
        on, off = (statistics.median(both[report]) for report in ("true", "false"))
        print(f"{name:<4} with reports {on:6.2f} CPU s, without {off:6.2f}: {on - off:+.2f}")
    if how.out:
        how.out.write_text(json.dumps({"load": os.getloadavg(), "cpu_seconds": found}, indent=1) + "\n")


def run(place: Path, script: str, *arguments: str) -> float:
    """Run a script of the examples to its end; returns its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        env={**os.environ, "ARITHMETIC": str(place)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


if __name__ == "__main__":
    main()
