"""The site, built once for the tests of a process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT


@dataclass(frozen=True)
class Site:
    """A built site: its folder, how the building ended, and what it said."""

    folder: Path
    status: int
    said: str

    def pages(self) -> list[Path]:
        return sorted(self.folder.rglob("*.html"))


def build(source: Path, folder: Path) -> Site:
    """The command of CONTRIBUTING.md, from a checkout's root; no warning is let pass."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    doctrees = ["-d", str(folder.with_name("doctrees"))]
    done = subprocess.run(
        [*command, *doctrees],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Site(folder, done.returncode, done.stdout)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build(ROOT, tmp_path_factory.mktemp("site") / "site")
