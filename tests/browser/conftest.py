"""Runs whose pages are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.made_up_run import Size, make_run
from rs_aligner.report.page import write_report

LARGE = Size(steps=27, prompts=32, answers=24, limit=160)
"""20,736 rollouts, each step in two files; making 100,000 takes too long for a test."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run, whose rollouts are within the page; it lies where nothing else does."""
    folder = tmp_path_factory.mktemp("small")
    make_run(folder / "run", Size(steps=3, prompts=4, answers=6, limit=60, held_out_interval=2))
    return write_report(folder / "run").rename(folder / "mailed.html")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose rollouts lie beside the page."""
    folder = tmp_path_factory.mktemp("large") / "run"
    make_run(folder, LARGE)
    write_report(folder)
    return folder
