"""Runs that are killed everywhere and started again: do all end with the same bits, and nothing judged twice?

    python benchmarks/kills.py                every point and 100 random instants; ends with 1 if one fails
    python benchmarks/kills.py --kind bank    the same with a bank and a KL term
    python benchmarks/kills.py --ranks 2      random instants on two replicas: a rank, both, or the launcher
    python benchmarks/kills.py --only figures points whose names have it

The run is small and has all that a run can have (`tests/crash/scene.py`). A run that is killed is started
again with the same command; at random instants up to three times, each killed again. In the end weights,
ledger and metrics (but for times) are those of the run that nobody killed, to the bit, and the judge was
asked for no row that the folder had when the run was started again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.crash.kill_points import POINTS
from tests.crash.scene import KINDS, Scene, scene


def at_points(stage: Scene, only: str) -> list[str]:
    """Kill at each point; returns what is wrong, a line for each that failed."""
    wrong = []
    for number, point in enumerate(POINTS):
        if only not in point.name:
            continue
        run = stage.folder / f"point_{number:02d}"
        status = stage.attempt(run, point=point)
        problem = "" if status == -signal.SIGKILL else f"it ended with {status} and was not killed"
        problem = problem or ended_wrong(stage, run)
        wrong += told(point.name, problem)
    return wrong


def at_instants(stage: Scene, number: int, seed: int, seconds: float) -> list[str]:
    """Kill at random instants; returns what is wrong."""
    wrong, rng = [], random.Random(seed)
    for attempt in range(number):
        run = stage.folder / f"instant_{attempt:03d}"
        kills = rng.randint(1, 3)
        said = []
        for _ in range(kills):
            pid = stage.start(run)
            instant = rng.uniform(0.0, seconds)
            time.sleep(instant)
            who = kill(pid, rng)
            status = stage.runs.wait(pid)
            stage.gone(pid)
            said.append(f"{who} after {instant:.2f} s" + (" (had ended)" if status == 0 else ""))
        wrong += told(", ".join(said), ended_wrong(stage, run))
    return wrong


def kill(pid: int, rng: random.Random) -> str:
    """Kill a run's only process, or of several the launcher, one rank, or all ranks."""
    try:
        ranks = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        ranks = []
    what = rng.choice(("launcher", "rank", "ranks")) if len(ranks) > 1 else "run"
    doomed = {"rank": [rng.choice(ranks).pid]} if what == "rank" else {"ranks": [rank.pid for rank in ranks]}
    for process in doomed.get(what, [pid]):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return what


def ended_wrong(stage: Scene, run: Path) -> str:
    """What is wrong with a killed run that is started again; empty if nothing is."""
    try:
        stage.goes_on(run)
    except AssertionError as error:
        return str(error)
    return ""


def told(name: str, problem: str) -> list[str]:
    """Print a line; returns it if there is a problem."""
    line = f"{'FAILED' if problem else 'ok    '} {name}{': ' + problem if problem else ''}"
    print(line, flush=True)
    return [line] if problem else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=sorted(KINDS), default="pool")
    parser.add_argument("--random", type=int, default=100, help="random instants")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", default="", help="points whose names have this; no random instants then")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of the run")
    asked = parser.parse_args()
    more = [f"trainer.devices={asked.ranks}", *asked.override]
    with (
        tempfile.TemporaryDirectory(prefix="kills_") as folder,
        scene(Path(folder), asked.kind, *more) as stage,
    ):
        began = time.monotonic()
        seconds = [stage.seconds(Path(folder) / f"timed_{number}") for number in range(3)]
        print(f"a run takes {statistics.median(seconds):.1f} s and asks {stage.whole.judged.total()} times")
        wrong = at_points(stage, asked.only) if asked.ranks == 1 else []
        if not asked.only:
            wrong += at_instants(stage, asked.random, asked.seed, statistics.median(seconds))
        print(f"{len(wrong)} failed; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
