"""The record of newer Megatrons, the bound that goes by it, and what the script says that makes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from scripts.tests_record import summed
from tests.conftest import ROOT

RECORD = ROOT / "benchmarks" / "results" / "newest_megatron.json"
WHOLE = "tests/model tests/policy tests/generation"
pytestmark = pytest.mark.timeout(60)


def test_the_bound_in_setup_is_what_was_run_without_a_failure() -> None:
    text = (ROOT / "setup.py").read_text()
    [(low, out, high)] = re.findall(r'"megatron-core>=0\.(\d+),((?:!=0\.\d+\.\*,)*)<0\.(\d+)"', text)
    allowed = set(range(int(low), int(high))) - set(map(int, re.findall(r"!=0\.(\d+)", out)))
    pinned = re.findall(r"^megatron-core==0\.(\d+)\.", (ROOT / "requirements" / "cpu.txt").read_text(), re.M)
    record = json.loads(RECORD.read_text())
    assert all(one["tests"] == WHOLE for one in record.values())
    run = {int(name.split(".")[1]) for name, one in record.items() if one["failed"] == 0 < one["passed"]}
    assert {int(one) for one in pinned} | run == allowed
    newest = re.findall(r"^megatron-core==(.+)$", (ROOT / "requirements" / "newest.txt").read_text(), re.M)
    assert newest == [max(record)] == [record[max(record)]["versions"]["megatron-core"]]


def test_a_record_has_the_counts_and_the_names_of_what_failed(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="fine"/>'
        '<testcase classname="tests.a" name="bad"><failure message="no"/></testcase>'
        '<testcase classname="tests.b" name="broken[1]"><error message="no"/></testcase>'
        '<testcase classname="tests.b" name="left"><skipped message="needs a GPU (none in /dev)"/></testcase>'
        '<testcase classname="tests.b" name="out"><skipped message="needs a GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert summed(junit) == {
        "passed": 1,
        "failed": 2,
        "skipped": 2,
        "failures": ["tests.a::bad", "tests.b::broken[1]"],
        "skipped_for": {"needs a GPU": 2},
    }


def test_without_a_python_3_12_the_script_says_how_to_get_one(tmp_path: Path) -> None:
    bash = ("bash", str(ROOT / "scripts" / "test_newest.sh"))
    old = tmp_path / "python3.12"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    env = {**os.environ, "PYTHON": str(old), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(bash, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"needs Python 3.12 with the venv module, and PYTHON={old} is not one" in done.stderr
    assert "pyenv install 3.12" in done.stderr
    assert os.listdir(tmp_path) == ["python3.12"]
