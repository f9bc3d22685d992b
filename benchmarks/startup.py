"""How soon the command answers: CPU seconds (user and system) and modules of a process, by what it got to.

    python benchmarks/startup.py [--repeats 3] [--out results.json]

    help          `rs-aligner --help`
    config error  `rs-aligner train` without the keys that must be set
    plan          `rs-aligner plan train --config-name stories`, the judge in the process
    first token   `rs-aligner train --config-name stories`, the same, until the first token is sampled
    run           one step of it, to the end

Modules have their bytecode, as pip leaves it, from a first run that does not count. The least of the repeats
does: CPU seconds grow with what else the machine does, since two processes share a core's caches. Where the
time goes: `python -X importtime -m rs_aligner train ...`. `--stop-at-first-token` is how this script runs
itself.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHOOSER = "rs_aligner.generation.choosing"
STORIES = (
    *("--config-name", "stories", "remote_rm.in_process=true", "remote_rm.judge.name=sentiment"),
    *("trainer.rs.max_steps=1", "trainer.rs.val_check_interval=null", "trainer.rs.save_interval=1"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How soon the command answers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    how = parser.parse_args(arguments)
    cases = {
        "help": ("--help",),
        "config error": ("train",),
        "plan": ("plan", "train", *STORIES),
        "first token": ("train", *STORIES),
        "run": ("train", *STORIES),
    }
    with tempfile.TemporaryDirectory() as bytecode:
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        look(cases["run"])
        found = {name: measure(name, case, how.repeats) for name, case in cases.items()}
    for name, figures in found.items():
        print(f"{name:<13} {figures['cpu_seconds']:6.2f} CPU s  {figures['modules']:5d} modules")
    if how.out:
        how.out.write_text(json.dumps({"load": os.getloadavg(), "results": found}, indent=1) + "\n")


def measure(name: str, case: Sequence[str], repeats: int) -> dict[str, Any]:
    """The least CPU seconds of some runs, and the number of modules that were loaded."""
    runs = [look(case, stops=name == "first token") for _ in range(repeats)]
    return {
        "cpu_seconds": min(run["cpu_seconds"] for run in runs),
        "all": [run["cpu_seconds"] for run in runs],
        "modules": len(runs[0]["modules"]),
    }


def look(case: Sequence[str], *, stops: bool = False) -> dict[str, Any]:
    """Run the command once, in a process and a folder of its own.

    Args:
        case: its arguments.
        stops: ends it when the first token is sampled.

    Returns:
        `cpu_seconds` and `modules` when it ended, and its `status`.
    """
    with tempfile.TemporaryDirectory() as place:
        found = Path(place) / "found.json"
        data = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
        folder = (f"exp_manager.explicit_log_dir={place}/run",) if "stories" in case else ()
        mode = "--stop-at-first-token" if stops else "--to-the-end"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, mode, str(found), *case, *folder],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RS_ALIGNER_TEST_DATA": str(data)},
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not found.exists():
            raise RuntimeError(f"it never got there:\n{done.stdout}")
        return {**json.loads(found.read_text()), "status": done.returncode}


def _run(mode: str, found: Path, case: Sequence[str]) -> None:
    """The command in this process, which notes what it has used when it ends or samples."""

    def note() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = round(used.ru_utime + used.ru_stime, 2)
        found.write_text(json.dumps({"cpu_seconds": seconds, "modules": sorted(sys.modules)}))

    def note_and_leave(*_: Any) -> None:
        note()
        os._exit(0)

    if mode == "--stop-at-first-token":
        sys.meta_path.insert(0, _WhenImported(CHOOSER, note_and_leave))
    from rs_aligner.cli.main import main

    sys.argv[1:] = case
    status: Any = 1
    try:
        status = main(list(case))
    except SystemExit as ended:
        status = ended.code
    note()
    sys.exit(status)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Puts a function behind the first choice of tokens."""

    def __init__(self, name: str, then: Any) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            choose = module.Chooser.choose
            module.Chooser.choose = lambda *args: (choose(*args), self.then())[0]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # a loader that stops the clock
        return spec


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("--stop-at-first-token", "--to-the-end"):
        _run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
