"""Runs a test program on several CPU ranks and brings its results back.

Starting ranks costs over ten seconds each (imports), so a program runs many cases and saves what
it found; plain tests then look at the results.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rs_aligner.child import die_with_parent

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(module: str, num_ranks: int, folder: Path, *args: str, timeout: float = 300) -> list[Any]:
    """Run `python -m module folder *args` on `num_ranks` ranks; returns what each rank saved.

    The program saves with `save_result`. A rank that fails or hangs ends the others.
    """
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}")
    _run([*launcher, "-m", module, str(folder), *args], folder, module, timeout)
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(num_ranks)]


def run_program(module: str, folder: Path, *args: str, timeout: float = 300) -> None:
    """Run `python -m module folder *args`, which may call `fork_ranks`."""
    _run(["-m", module, str(folder), *args], folder, module, timeout)


def _run(arguments: list[str], folder: Path, what: str, timeout: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *arguments]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # launcher and program end their ranks
        output, _ = process.communicate(timeout=30)
        raise AssertionError(f"{what} did not end in {timeout} s:\n{output}") from None
    assert process.returncode == 0, output


def fork_ranks(num_ranks: int, rank_main: Callable[[], None], timeout: float = 300) -> None:
    """Run a function on ranks that are forks of this process, which has imported what they need.

    So the imports are paid for once. The process must not have joined a process group nor started threads. A
    rank that fails or hangs ends the others.
    """
    ranks, parent = {}, os.getpid()
    for rank in range(num_ranks):
        if (child := os.fork()) == 0:
            die_with_parent(parent)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))
            status = 1
            try:
                rank_main()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        ranks[child] = rank
    deadline, failed = time.monotonic() + timeout, ""
    while ranks and not failed:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            rank = ranks.pop(child)
            failed = f"rank {rank} ended with {status}" if status else ""
        elif time.monotonic() > deadline:
            failed = f"ranks {sorted(ranks.values())} did not end in {timeout} s"
        else:
            time.sleep(0.05)
    for child in ranks:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not failed, failed


def save_result(folder: Path, result: Any) -> None:
    """Called by a rank's program: keep its result for the test."""
    rank = os.environ.get("RANK", "0")
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(result))
