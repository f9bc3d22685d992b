"""The benchmarks run; what they find is recorded beside them and not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_comparison_on_a_device_runs(tmp_path: Path) -> None:
    """On a CPU and a tiny shape: that it runs is all that can be known without a GPU."""
    program = (
        "import json, on_device; found = on_device.compare('tiny', 'cpu', 1, num_prompts=2, num_rollouts=3, "
        "prompt_length=20, max_length=5); print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "benchmarks"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hf / ours"] > 0
    assert found["share of the limit"] > 0


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_decoder_is_measured_against_every_opponent(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/generation.py", "--quick", "--workloads", "c", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    sides = json.loads(out.read_text())["results"]["c"]
    assert set(sides) == {"ours", "hf", "hf_forked", "megatron", "limit", "torch"}
    assert len({sides[side]["tokens"] for side in sides if side != "limit"}) == 1
    assert all(seconds > 0 for side in sides.values() for seconds in side["seconds"])


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_judges_client_is_measured_against_its_server(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/judge.py", "--quick", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=190,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"cost", "memory", "overlap", "throughput"}
    assert results["memory"]["bounded"]["most"] <= 512 + 4 * 64  # waiting, and under way
    assert results["throughput"]["ratio"] > 1
