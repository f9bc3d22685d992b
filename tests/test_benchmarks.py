"""The benchmarks run; what they find is recorded beside them and not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, timeout: int, **variables: str) -> str:
    """What a script prints; one that fails fails the test with all that it said."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_comparison_on_a_device_runs(tmp_path: Path) -> None:
    """On a CPU and a tiny shape: that it runs is all that can be known without a GPU."""
    program = (
        "import json, on_device; found = on_device.compare('tiny', 'cpu', 1, num_prompts=2, num_rollouts=3, "
        "prompt_length=20, max_length=5); print(json.dumps(found))"
    )
    said = run("-W", "ignore", "-c", program, timeout=110, PYTHONPATH="benchmarks")
    found = json.loads(said.splitlines()[-1])
    assert found["hf / ours"] > 0
    assert found["share of the limit"] > 0


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_decoder_is_measured_against_every_opponent(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    quick = ("--quick", "--workloads", "c", "--repeats", "1")
    run("benchmarks/generation.py", *quick, "--out", str(out), timeout=270)
    sides = json.loads(out.read_text())["results"]["c"]
    assert set(sides) == {"ours", "hf", "hf_forked", "megatron", "limit", "torch"}
    assert len({sides[side]["tokens"] for side in sides if side != "limit"}) == 1
    assert all(seconds > 0 for side in sides.values() for seconds in side["seconds"])


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_judges_client_is_measured_against_its_server(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run("benchmarks/judge.py", "--quick", "--out", str(out), timeout=190)
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"cost", "memory", "overlap", "throughput"}
    assert results["memory"]["bounded"]["most"] <= 512 + 4 * 64  # waiting, and under way
    assert results["throughput"]["ratio"] > 1
