"""Runs of `examples/train_rs.py` that are to be killed, started in a moment.

Starting a run takes ten seconds of imports, and here hundreds are started. So one process imports everything
and then forks for each run; from there on a run is as any other: its own session, the script's own `main`,
its arguments. It is asked over its standard input, a line of JSON each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.crash.points import Point, arm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train_rs.py"
PRELOADED = (
    *("rs_aligner.cli.scripts", "rs_aligner.commands.train_rs", "rs_aligner.commands.run_data"),
    *("rs_aligner.trainers.rs", "rs_aligner.policy.policy", "rs_aligner.record.run", "rs_aligner.selection"),
    *("rs_aligner.reward.client", "transformers", "hydra"),
)


class Victims:
    """The process that starts runs.

    Args:
        arguments: of every run, as Hydra takes them.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.crash.victims"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, *more: str, point: Point | None = None) -> int:
        """Start a run, which dies at `point` if it gets there; returns its process id."""
        return int(
            self._ask(
                {"log": str(log), "arguments": [*self.arguments, *more], "point": point and asdict(point)}
            )
        )

    def wait(self, pid: int) -> int:
        """Wait for a run; returns its exit status, negative if a signal ended it."""
        return int(self._ask({"wait": pid}))

    def run(self, log: Path, *more: str, point: Point | None = None) -> int:
        """Start a run and wait for it."""
        return self.wait(self.start(log, *more, point=point))

    def _ask(self, what: Any) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts runs has ended"
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def victims(arguments: Sequence[str]) -> Iterator[Victims]:
    """A `Victims` that is ended, whatever happens."""
    found = Victims(arguments)
    try:
        yield found
    finally:
        found.close()


def main() -> None:
    """Answer until the input ends."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            if "wait" in asked:
                _, status = os.waitpid(asked["wait"], 0)
                said = os.waitstatus_to_exitcode(status)
            else:
                said = _forked(asked)
            answers.write(f"{said}\n")
            answers.flush()


def _forked(asked: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 64)
        # Open for as long as the process lives (SIM115).
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115  # for life
        if asked["point"] is not None:
            arm(Point(**asked["point"]))
        status = _script(asked["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _script(arguments: Sequence[str]) -> int:
    import runpy

    sys.argv = [str(SCRIPT), *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]  # by which a launcher starts its ranks
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        code = ended.code
        if code is None or isinstance(code, int):
            return int(code or 0)
        print(code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
