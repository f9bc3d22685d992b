"""One Slurm for all tests of the scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import does_without
from tests.slurm import stand_in
from tests.slurm.cluster import DAEMONS, Cluster, cluster, find


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A Slurm that takes jobs; tests that need it end where its packages are missing."""
    if not all(map(find, DAEMONS)):
        does_without("Slurm (slurmctld, slurmd, slurm-client, munge)")
    with cluster() as running:
        yield running


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What runs the stand-in for trainer and judge as if it were Python."""
    script = tmp_path_factory.mktemp("bin") / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(stand_in.__file__)} "$@"\n')
    script.chmod(0o755)
    return str(script)
