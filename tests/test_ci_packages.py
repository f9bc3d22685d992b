"""What tests need of the system: installed on CI; missing elsewhere, a test is skipped and says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, does_without

SCRIPT = ROOT / "scripts" / "ci_packages.sh"


def run(folder: Path, **commands: str) -> tuple[str, list[str]]:
    """Run the script where there are only these commands; returns what it said and what apt-get was told."""
    log = folder / "log"
    for name, body in {"bash": "", **commands}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": str(folder), "LOG": str(log)}
    done = subprocess.run(["/bin/bash", SCRIPT], env=env, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr, log.read_text().splitlines() if log.exists() else []


APT = 'echo "$@" >>"$LOG"; exit ${STATUS:-0}'
PACKERS = {"jq": "", "gzip": ""}
SLURM = dict.fromkeys(("slurmctld", "slurmd", "srun", "munged"), "")
ALL = "gcc libc6-dev slurmctld slurmd slurm-client munge chromium jq gzip"


def test_nothing_is_done_where_all_is_there(tmp_path: Path) -> None:
    commands = {"cc": "", **SLURM, "chromium": "", **PACKERS, "id": "echo 0", "apt-get": APT}
    assert run(tmp_path, **commands) == ("", [])


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ({}, ALL),
        ({**SLURM, "chromium": "", **PACKERS}, "gcc libc6-dev"),
        ({"cc": "", "srun": "", "gzip": ""}, "slurmctld slurmd munge chromium jq"),
    ],
)
def test_what_is_missing_is_installed_by_root(there: dict[str, str], missing: str, tmp_path: Path) -> None:
    said, asked = run(tmp_path, **there, **{"id": "echo 0", "apt-get": APT})
    assert said == f"ci_packages: installing {missing}\n"
    assert asked == ["-qq update", f"-qq install --yes --no-install-recommends {missing}"]


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ({"id": "echo 1000", "apt-get": APT}, "cannot be installed without root and apt-get"),
        ({"id": "echo 0"}, "cannot be installed without root and apt-get"),
        ({"id": "echo 0", "apt-get": "exit 100"}, "could not be installed"),
    ],
    ids=["no root", "no apt-get", "no network"],
)
def test_what_cannot_be_installed_is_told_and_left_to_the_tests(
    commands: dict[str, str], told: str, tmp_path: Path
) -> None:
    said, asked = run(tmp_path, **commands)
    assert said.endswith(f"ci_packages: {ALL} {told}\n")
    assert asked == []


def test_only_ci_installs_anything() -> None:
    places = [ROOT / ".ci" / "run", *(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts").rglob("*.sbatch")]
    calls = [path for path in places if path != SCRIPT and "ci_packages.sh" in path.read_text()]
    assert calls == [ROOT / ".ci" / "run"]
    assert "export CI=true" in calls[0].read_text()


def test_a_test_without_its_package_is_skipped_and_fails_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"needs a C compiler, which scripts/ci_packages\.sh installs"
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=message):
        does_without("a C compiler")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=message):
        does_without("a C compiler")
