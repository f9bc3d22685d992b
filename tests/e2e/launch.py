"""Runs the scripts as users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_script(
    script: str, *arguments: str, timeout: float, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python examples/<script>`; both streams are its `stdout`, its failure is the caller's matter."""
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    return run_command(*command, timeout=timeout, cwd=cwd, **env)


def run_command(
    *command: str, timeout: float, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run any command in the same way."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


FORKS = """
import json, os, runpy, sys
import rs_aligner.cli.scripts
script, *starts = json.load(sys.stdin)
for arguments, log in starts:
    child = os.fork()
    if child == 0:
        log = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv[:] = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_forked(script: str, starts: Sequence[Sequence[str]], *, timeout: float) -> list[tuple[int, str]]:
    """Run `python examples/<script>` with each of these arguments, one after the other; status and output.

    For starts that end before anything large is imported: each is a fork of a process that has imported what
    all of them do.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(number) for number in range(len(starts))]
        asked = [[list(arguments), str(log)] for arguments, log in zip(starts, logs, strict=True)]
        done = subprocess.run(
            [sys.executable, "-c", FORKS],
            check=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            input=json.dumps([str(ROOT / "examples" / script), *asked]),
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout,
        )
        statuses = map(int, done.stdout.split())
        return [(status, log.read_text()) for status, log in zip(statuses, logs, strict=True)]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
