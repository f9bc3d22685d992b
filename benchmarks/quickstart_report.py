"""What the reports cost the quickstart: CPU seconds of its two trainings that go into them.

    python benchmarks/quickstart_report.py [--out results.json]

The trainings are those of `scripts/quickstart.sh`, but for the judge, which is in the process. CPU seconds
are those of the thread that writes a page, imports included, and those of the whole process. Two runs, one
without reports, differ by more than a report costs, so it is counted within one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAININGS = {
    "sft": ("train_sft.py", "--config-name", "arithmetic_sft"),
    "rs": (
        *("train_rs.py", "--config-name", "arithmetic"),
        *("remote_rm.in_process=true", "remote_rm.judge.name=exact_answer"),
    ),
}
_COUNTED = """
import atexit, json, runpy, sys, time
from rs_aligner.report.live import LivePage

out, *sys.argv = sys.argv[1:]
spent, write = [], LivePage._write

def counted(page):
    began = time.thread_time()
    path = write(page)
    spent.append(round(time.thread_time() - began, 2))
    return path

@atexit.register
def tell():
    with open(out, "w") as file:
        json.dump({"pages": spent, "training": round(time.process_time(), 2)}, file)

LivePage._write = counted
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the reports cost the quickstart")
    parser.add_argument("--out", type=Path)
    how = parser.parse_args(arguments)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        env = {**os.environ, "ARITHMETIC": place}
        make = [str(ROOT / "examples/arithmetic/make_task.py"), "--out", f"{place}/task"]
        subprocess.run([sys.executable, *make], env=env, stdout=subprocess.DEVNULL, check=True)
        for name, command in TRAININGS.items():
            found[name] = run(Path(place), env, *command)
            assert (Path(place) / name / "report.html").exists()
            print(
                f"{name:<4} pages {found[name]['pages']} CPU s, of {found[name]['training']:.1f}", flush=True
            )
    print(f"together {sum(sum(one['pages']) for one in found.values()):.2f} CPU s")
    if how.out:
        how.out.write_text(json.dumps({"load": os.getloadavg(), **found}, indent=1) + "\n")


def run(place: Path, env: dict[str, str], script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of the examples to its end; returns the CPU seconds of each page, and of all."""
    out = place / "counted.json"
    command = [sys.executable, "-c", _COUNTED, str(out), str(ROOT / "examples" / script), *arguments]
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    counted: dict[str, Any] = json.loads(out.read_text())
    return counted


if __name__ == "__main__":
    main()
