"""What `setup.py` says of other packages: each bound was run, and what the tests need can be installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.bounds import asked, given, oldest
from tests.conftest import ROOT

RECORD = json.loads((ROOT / "benchmarks" / "results" / "bounds.json").read_text())
pytestmark = pytest.mark.timeout(60)


def pins(name: str) -> dict[str, Version]:
    """The versions of a file of `requirements/`, by the names that pip compares."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements" / name).read_text(), re.M)
    return {plain(name): Version(version) for name, version in found}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_both_ends_were_run_without_a_failure(end: str) -> None:
    assert RECORD[end]["tests"] == "tests --ignore tests/test_bounds.py -m not slow"
    assert RECORD[end]["failed"] == 0 < RECORD[end]["passed"]
    assert set(RECORD[end]["versions"]) == set(asked())


def test_a_lower_bound_is_the_version_that_was_run() -> None:
    run = {name: Version(version) for name, version in RECORD["oldest"]["versions"].items()}
    assert run == {name: Version(low) for name, low in oldest().items()}


def test_the_pins_and_the_newest_that_were_run_are_within_the_bounds() -> None:
    pinned = pins("cpu.txt")
    for name, bounds in asked().items():
        assert pinned[plain(name)] in SpecifierSet(bounds), name
        assert Version(RECORD["newest"]["versions"][name]) in SpecifierSet(bounds), name


def test_what_the_tests_need_is_pinned_and_comes_with_the_extra() -> None:
    pinned = pins("cpu.txt") | pins("dev.txt")
    for asked_for in map(Requirement, given()["extras_require"]["dev"]):
        assert pinned[plain(asked_for.name)] in asked_for.specifier, asked_for


@pytest.mark.parametrize(
    ("arguments", "python", "words"),
    [
        (("latest",), "python3.11", "say newest, oldest, or both, not 'latest'"),
        ((), "python3.11", "say newest, oldest, or both"),
        (("newest",), "/nowhere/python", "needs Python 3.11"),
    ],
)
def test_the_script_says_what_it_needs(
    tmp_path: Path, arguments: tuple[str, ...], python: str, words: str
) -> None:
    env = {**os.environ, "PYTHON": python, "XDG_CACHE_HOME": str(tmp_path)}
    command = ("bash", str(ROOT / "scripts" / "test_bounds.sh"), *arguments)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not list(tmp_path.iterdir())
