"""What it costs to judge a program: `judge.name=code` beside a plain subprocess that nothing protects from.

    python benchmarks/code_judge.py

Honest programs, by the kind of tests that their rows have: three assertions, a function's values, three
inputs and outputs. The plain way starts `python -I -S` on the program with its tests behind it, for each row
(for each input where there are inputs), which a program passes by `os._exit(0)`. CPU time is of all
processes; of the sandbox it is known when it has ended."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rs_aligner.reward.judges.code import CodeJudge  # noqa: E402  # behind the path

PROGRAM = "def double(x):\n    return 2 * x\n"
ASSERTIONS = ["assert double(1) == 2", "assert double(2) == 4", "assert double(3) == 6"]
INPUTS, OUTPUTS = ["1\n", "2\n", "3\n"], ["2\n", "4\n", "6\n"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "3 assertions": (PROGRAM, {"test_list": ASSERTIONS}),
    "3 calls": (PROGRAM, {"tests": {"fn_name": "double", "inputs": [[1], [2], [3]], "outputs": [2, 4, 6]}}),
    "3 inputs": ("print(2 * int(input()))", {"tests": {"inputs": INPUTS, "outputs": OUTPUTS}}),
}


def plain(program: str, row: dict[str, Any]) -> bool:
    """Tests in the program's own process."""
    if "test_list" in row:
        return _runs("\n".join([program, *row["test_list"]])) is not None
    tests = row["tests"]
    if "fn_name" in tests:
        pairs = zip(tests["inputs"], tests["outputs"], strict=True)
        checks = [f"assert {tests['fn_name']}(*{given}) == {wanted}" for given, wanted in pairs]
        return _runs("\n".join([program, *checks])) is not None
    return all(
        _runs(program, given) == wanted
        for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True)
    )


def _runs(program: str, given: str = "") -> str | None:
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=10, check=False)
    return None if done.returncode else done.stdout


def measured(number: int, run: Callable[[int], None]) -> dict[str, float]:
    """CPU milliseconds a row, and rows a second."""
    cpu, began = sum(os.times()[:4]), time.monotonic()
    run(number)
    seconds = time.monotonic() - began
    return {"cpu_ms": (sum(os.times()[:4]) - cpu) / number * 1000, "rows_per_second": number / seconds}


def judged(program: str, row: dict[str, Any], workers: int, number: int) -> None:
    """With the judge, its start included."""
    judge = CodeJudge(workers=workers)
    scores = judge.score_texts([""] * number, [program] * number, [row] * number)
    judge.close()
    assert all(isinstance(score, dict) and score["reward"] == 1.0 for score in scores)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "code_judge.json")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print("| tests | way | CPU ms a row | rows a second |\n|---|---|---|---|")
    for kind, (program, row) in KINDS.items():
        ways: dict[str, Callable[[int], None]] = {
            f"code, workers={workers}": partial(judged, program, row, workers) for workers in (1, 2)
        }

        def without(number: int, program: str = program, row: dict[str, Any] = row) -> None:
            assert all(plain(program, row) for _ in range(number))

        for way, run in {**ways, "plain subprocess": without}.items():
            found[f"{kind}, {way}"] = figures = measured(args.rows, run)
            print(f"| {kind} | {way} | {figures['cpu_ms']:.1f} | {figures['rows_per_second']:.0f} |")
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
