"""Folders of runs that are damaged and started again by the command: told in one line, or the same bits.

    python benchmarks/corruptions.py [--number 36] [--seed 3]

A small run (`tests/crash/scene.py`, a checkpoint every other step) is killed while step 5 is open. A copy of
its folder, or the model that it begins with, then gets one damage (a flipped bit, a cut, zeros, another file
of its kind in its place, or it is missing), and the command is started again. It either ends with what the
run that nobody killed has, to the bit, or ends with status 2 and a line that names the file; then the file is
put back, and the same command has to finish as if nothing had been. A file of a step that a checkpoint has
behind it is not read at a start: such a one must be refused by whoever reads it. Ends with 1 where one fails.

`tests/crash/test_corruptions.py` and its neighbours have a thousand of these, by the functions that load.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rs_aligner.exit_status import TO_BE_MENDED
from rs_aligner.record.ledger import Ledger
from tests.crash.points import Point
from tests.crash.scene import Scene, scene
from tests.crash.test_corruptions import flip, truncate, zero

HALF_A_LINE = Point("step 5 is open", "os:write", "half", 60, r"rollouts/step_\d+\.open/")
KINDS_OF_FILES = (
    *("checkpoints/step_000004/*.distcp", "checkpoints/step_000004/*[!p]", "checkpoints/step_000002/*"),
    *("rollouts/step_*.jsonl", "rollouts/held_out_*.jsonl", "rollouts/*.open/*"),
    *("metrics.*", "run.json", "config/*", "config.yaml", "../policy/*.safetensors", "../policy/*.json"),
)


def missing(path: Path, _: random.Random) -> None:
    path.unlink()


def another(path: Path, rng: random.Random) -> None:
    """Another file of the kind, of another step where there is one."""
    others = [one for one in path.parent.iterdir() if one != path and one.suffix == path.suffix]
    others += [one for one in path.parent.parent.glob(f"*/{path.name}") if one != path]
    path.write_bytes(rng.choice(sorted(others)).read_bytes() if others else b"another")


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, truncate, zero, another, missing)


def one_damage(stage: Scene, killed: Path, number: int, rng: random.Random) -> tuple[str, str]:
    """Damage a file, start the command; returns what was done and came of it, and what is wrong, if it is."""
    run = stage.folder / f"damaged_{number:02d}"
    shutil.copytree(killed, run)
    kind = KINDS_OF_FILES[number % len(KINDS_OF_FILES)]
    root = run if not kind.startswith("../") else stage.folder
    files = (path for path in root.glob(kind.removeprefix("../")) if path.is_file())
    path = rng.choice(sorted(path for path in files if path.stat().st_size))
    damage, content = DAMAGES[(number // len(KINDS_OF_FILES) + number) % len(DAMAGES)], path.read_bytes()
    damage(path, rng)
    what = f"{damage.__name__:<8} {path.relative_to(root)}"
    status = stage.attempt(run)
    said = stage.said(run)
    is_damaged = not path.exists() or path.read_bytes() != content
    if root == stage.folder or status != 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        assert "Traceback" not in said, said
        if status == 0:
            unread = [path.name] if is_damaged and path.parent.name == "rollouts" else []
            stage.check_bits(run, *unread)
            if unread and path.exists():
                with pytest.raises(ValueError, match=path.name):
                    Ledger(path.parent).read_named(path.stem)
                return f"{what}: not read, and refused by a reader", ""
            return f"{what}: {'set aside, or not read' if is_damaged else 'the same in the end'}", ""
        assert status == TO_BE_MENDED, f"exit status {status}:\n{said}"
        line = said.strip().splitlines()[-1]
        assert path.name in said or re.search(r"attempt|format|restore_from_path", line), said
        assert stage.attempt(run) == 0, stage.said(run)
        stage.check_bits(run)
    except AssertionError as error:
        return what, str(error) or "?"
    return f"{what}: told: {line[-150:]}", ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=3 * len(KINDS_OF_FILES))
    parser.add_argument("--seed", type=int, default=3)
    asked = parser.parse_args()
    rng, wrong = random.Random(asked.seed), 0
    with (
        tempfile.TemporaryDirectory(prefix="corruptions_") as folder,
        scene(Path(folder), "pool", "trainer.rs.save_interval=2") as stage,
    ):
        killed = Path(folder) / "killed"
        assert stage.attempt(killed, point=HALF_A_LINE) == -signal.SIGKILL, stage.said(killed)
        for number in range(asked.number):
            what, problem = one_damage(stage, killed, number, rng)
            print(
                f"{'FAILED' if problem else 'ok    '} {what}{': ' + problem if problem else ''}", flush=True
            )
            wrong += bool(problem)
        print(f"{wrong} of {asked.number} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
