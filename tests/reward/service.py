"""Runs `examples/serve_reward.py` as users do, and makes sure that it is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]

JUDGE = """
import time

def judge(prompts, responses, metadata):
    rewards = []
    for prompt, response, row in zip(prompts, responses, metadata):
        if response == "raise":
            raise KeyError("this row is bad")
        if response.startswith("sleep"):
            open("at_work", "w").close()
            time.sleep(float(response.split()[1]))
        rewards.append(float("nan") if response == "nan" else len(response) + row.get("bonus", 0))
    return rewards
"""


class Service:
    """A running server: its process and those that belong to it, its output so far, its temporary files."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, scratch: Path, port: int) -> None:
        self.process = process
        self.scratch = scratch
        self.port = port
        self.log = log

    @property
    def output(self) -> str:
        return self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def wait_until_ready(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while "ready at" not in self.output:
            assert self.process.poll() is None, f"the server ended:\n{self.output}"
            assert time.monotonic() < deadline, f"the server is not ready:\n{self.output}"
            time.sleep(0.1)

    def wait_until_at_work(self, timeout: float = 20) -> None:
        """Until the judge sleeps over a row."""
        deadline = time.monotonic() + timeout
        while not (self.log.parent / "at_work").exists():
            assert time.monotonic() < deadline, f"the judge does nothing:\n{self.output}"
            time.sleep(0.05)


@contextlib.contextmanager
def service(folder: Path, port: int, *overrides: str, scratch: Path | None = None) -> Iterator[Service]:
    """Start a server on `port`, its output in `folder`; at the end it is stopped, whatever happens."""
    log = folder / "serve_reward.log"
    scratch = scratch or Path(tempfile.mkdtemp(prefix="rs_"))  # short: sockets lie below it
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    # Like the background job of a shell script: SIGINT is ignored unless the server sees to it.
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    script = [sys.executable, str(ROOT / "examples" / "serve_reward.py")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shell, *script, f"inference.port={port}", *overrides],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Service(process, log, scratch, port)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        for survivor in alive:
            survivor.kill()
        shutil.rmtree(scratch, ignore_errors=True)
