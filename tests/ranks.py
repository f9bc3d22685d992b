"""Runs a test program on several CPU ranks and brings its results back.

Starting ranks costs over ten seconds each (imports), so a program runs many cases and saves what
it found; plain tests then look at the results.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(module: str, num_ranks: int, folder: Path, *args: str, timeout: float = 300) -> list[Any]:
    """Run `python -m module folder *args` on `num_ranks` ranks; returns what each rank saved.

    The program saves with `save_result`. A rank that fails or hangs ends the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"),
        *("-m", module, str(folder), *args),
    ]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks
        output, _ = process.communicate(timeout=30)
        raise AssertionError(f"{module} on {num_ranks} ranks did not end in {timeout} s:\n{output}") from None
    assert process.returncode == 0, output
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(num_ranks)]


def save_result(folder: Path, result: Any) -> None:
    """Called by a rank's program: keep its result for the test."""
    rank = os.environ.get("RANK", "0")
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(result))
