"""Puts together what `gpu_check.sh` found, as one JSON file and a few lines on the screen.

    python scripts/gpu_report.py WORK FILE SECONDS

WORK has `cards`, `tests.xml`, and of each step its log and how it ended. The status is 1 where anything
failed or did not run, or where no test passed. Left out on purpose: any judgement of the figures.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PACKAGES = ("torch", "megatron-core", "transformers", "peft", "flash-attn", "transformer-engine", "apex")
SHAPES = ("1b", "8b")
ENDED = re.compile(r"^(\S+)\.py::(.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", re.MULTILINE)
TIMED_OUT = (124, 137)  # of `timeout`


def ended(work: Path, step: str) -> dict[str, Any]:
    """How a step ended: its outcome, its seconds, and why it failed."""
    if (left_out := work / f"{step}.left_out").exists():
        return {"outcome": "left out", "why": left_out.read_text().strip()}
    if not (log := work / f"{step}.log").exists():
        return {"outcome": "not run"}
    said = log.read_text(errors="replace").strip().splitlines()
    if not (mark := work / f"{step}.ended").exists():
        return {"outcome": "ended early", "why": "\n".join(said[-20:])}
    status, seconds = map(int, mark.read_text().split())
    if status == 0:
        return {"outcome": "passed", "seconds": seconds}
    outcome = "timed out" if status in TIMED_OUT else "failed"
    return {"outcome": outcome, "seconds": seconds, "status": status, "why": "\n".join(said[-20:])}


def tests(work: Path) -> dict[str, Any]:
    """The tests' step, with each test; one that fails says why."""
    found = ended(work, "tests")
    file = work / "tests.xml"
    found["each"] = from_file(file) if file.exists() else from_log(work / "tests.log")
    found["counts"] = dict(Counter(one["outcome"] for one in found["each"].values()))
    if found["outcome"] == "passed" and not found["counts"].get("passed"):
        found |= {"outcome": "failed", "why": "no test passed"}
    return found


def from_file(file: Path) -> dict[str, dict[str, Any]]:
    """What pytest writes at its end."""
    each = {}
    for case in ElementTree.parse(file).iter("testcase"):
        one: dict[str, Any] = {"outcome": "passed", "seconds": float(case.get("time", 0))}
        for kind, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (told := case.find(kind)) is not None:
                one |= {"outcome": outcome, "why": told.get("message", "")}
        each[f"{case.get('classname')}::{case.get('name')}"] = one
    return each


def from_log(log: Path) -> dict[str, dict[str, Any]]:
    """What it has said until it was killed; nothing, where there is no log."""
    told = ENDED.findall(log.read_text(errors="replace")) if log.exists() else []
    return {
        f"{path.replace('/', '.')}::{name}": {"outcome": "failed" if outcome == "ERROR" else outcome.lower()}
        for path, name, outcome in told
    }


def benchmark(work: Path, shape: str) -> dict[str, Any]:
    """A benchmark's step, with its figures."""
    found = ended(work, shape)
    if found["outcome"] == "passed":
        found["figures"] = json.loads((work / f"{shape}.json").read_text())["results"][shape]
    return found


def machine(work: Path) -> dict[str, Any]:
    """What it all ran on."""
    import torch

    cards = [line.split(", ") for line in (work / "cards").read_text().splitlines()]
    installed = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    on_gpu = torch.cuda.is_available()
    return {
        "cards": [{"name": name, "memory_mib": int(memory)} for name, memory, _ in cards],
        "capability": list(torch.cuda.get_device_capability()) if on_gpu else None,
        "driver": cards[0][2],
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
            **{name: installed.get(name) for name in PACKAGES},
        },
    }


def commit() -> str | None:
    """Which state of the repository was checked; None where git does not say."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def report(work: Path, seconds: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seconds": seconds,
        **machine(work),
        "tests": tests(work),
        "benchmarks": {shape: benchmark(work, shape) for shape in SHAPES},
    }
    steps = [found["tests"], *found["benchmarks"].values()]
    found["ok"] = all(one["outcome"] in ("passed", "left out") for one in steps)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """A summary."""
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found["tests"]["counts"].items()))
    said = [f"tests: {found['tests']['outcome']} ({counts or 'none ran'})"]
    said += [
        f"  failed: {name}" for name, one in found["tests"]["each"].items() if one["outcome"] == "failed"
    ]
    for shape, one in found["benchmarks"].items():
        told = [f"{shape}: {one['outcome']}"]
        if "figures" in one:
            told.append(f"hf / ours {one['figures']['hf / ours']:.2f}")
            told.append(f"{one['figures']['share of the limit']:.0%} of the limit")
        elif "why" in one:
            told.append(one["why"].splitlines()[-1] if one["why"] else "it said nothing")
        said.append(", ".join(told))
    return said


def main() -> int:
    work, file, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    found = report(work, seconds)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    for line in (*lines(found), f"wrote {file} after {seconds} s"):
        print(f"gpu_check: {line}")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
