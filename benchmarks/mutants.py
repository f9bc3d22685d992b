"""What the tests notice: small faults put into the core, one at a time, and the share that a test finds.

    pip install -r requirements/mutants.txt
    python benchmarks/mutants.py                                200 mutants; ends with 1 below 95 %
    python benchmarks/mutants.py --only selection/bars.py       those of the sample in one module
    python benchmarks/mutants.py --list                         the sample, without running anything

The faults are those of Cosmic Ray's operators: another comparison, another arithmetic operator, a number that
is one off, `and` for `or`, a condition negated, a loop that never runs, a decorator left out, and so on. The
sample is drawn with a fixed seed: each module has its share by its lines, each place that can be changed is
drawn once at most, and one of the changes that are possible there is made. Annotations, which nothing reads
when a program runs, are no places.

Cosmic Ray's own runner changes files in place and starts a process for each mutant, which then imports torch
and Megatron for ten seconds. Here one process imports what others wrote and then forks for each mutant: the
child imports the mutated module and what stands around it anew and runs the tests of that module (`TESTS`)
until one fails. A mutant is killed when a test fails, or when its tests take much longer than without it.
Those that no test could kill, for they change nothing that anybody could see, stand with a reason each in
`equivalent_mutants.yaml`; the share is of the others. Processes that a test starts run the code unchanged.

What was found goes to a file, a line for each mutant; a mutant with a line there is not run again
(`--again` for all, or for the survivors).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any

import yaml
from mutant_sample import PACKAGE, ROOT, Mutant, mutated, sample, tests_of

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
PRELOADED = ("numpy", "torch", "omegaconf", "pydantic", "hydra", "hypothesis", "pytest", "tqdm")
SLOW = ("transformers", "megatron.core")  # ten seconds and more, for the modules whose tests need them
LEAST = 0.95
LAST_OUTPUT = Path(tempfile.gettempdir()) / f"mutants_{os.getpid()}.log"


class _Loader(importlib.machinery.SourceFileLoader):
    """Imports a module from another source than its file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        with warnings.catch_warnings(action="ignore"):
            return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder:
    """Finds one module in a source that is not on the disk."""

    def __init__(self, module: str, source: str) -> None:
        self.name = "rs_aligner." + module.removesuffix(".py").replace("/", ".")
        self.path, self.source = str(PACKAGE / module), source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        loader = _Loader(name, self.path, self.source)
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


class _FirstFailure:
    """A plugin of pytest that keeps the name of the first test that fails."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = str(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)


def run_tests(module: str, source: str | None, limit: float) -> tuple[str, str, float]:
    """Run a module's tests in a fork of this process.

    Args:
        module: its path below the package.
        source: what it is imported from; None for its file.
        limit: seconds after which they are ended.

    Returns:
        `passed`, `failed` or `timeout`; the first test that failed; the seconds that it took.
    """
    began, (reading, writing) = time.monotonic(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(module, source, writing)
    os.close(writing)
    while time.monotonic() - began < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with os.fdopen(reading) as pipe:
                name = pipe.read()
            passed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            return ("passed" if passed else "failed"), name, time.monotonic() - began
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)  # with what the tests have started
    os.waitpid(child, 0)
    os.close(reading)
    return "timeout", "", time.monotonic() - began


def _in_child(module: str, source: str | None, pipe: int) -> None:
    """Run the tests and leave with pytest's status, whatever happens."""
    status = 70
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(LAST_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        if source is not None:
            sys.meta_path.insert(0, _Finder(module, source))
        import pytest

        failure = _FirstFailure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "-W", "ignore"]
        status = int(pytest.main([*options, *tests_of(module)], plugins=[failure]))
        os.write(pipe, failure.name.encode())
    finally:
        os._exit(status)


def preload(wanted: Sequence[str]) -> None:
    """Import what the children would import each by itself; nothing of this project."""
    names = list(PRELOADED)
    if any("generation/" in module or "policy/" in module for module in wanted):
        names.extend(SLOW)
    for name in names:
        importlib.import_module(name)
    from hypothesis import HealthCheck, settings

    # The same examples each time, however busy the machine is: only a fault is to make a test fail.
    settings.register_profile(
        "mutants", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("mutants")
    ours = [name for name in sys.modules if name.split(".")[0] in ("rs_aligner", "tests")]
    assert not ours, f"{ours} would be imported before they are mutated"


def equivalent() -> dict[tuple[str, str, str], str]:
    """The mutants that change nothing that could be seen, and why."""
    rows = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.is_file() else []
    return {(row["module"], row["before"], row["after"]): row["why"] for row in rows or []}


def run(mutants: Sequence[Mutant], out: Path, again: str | None) -> list[dict[str, Any]]:
    """Run what has no line in `out` yet; returns the lines of these mutants."""
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    if out.is_file() and again != "all":
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        known = {(row["module"], row["before"], row["after"]): row for row in rows}
    harmless = equivalent()
    limits: dict[str, float] = {}
    found = []
    for mutant in mutants:
        row = known.get(mutant.key)
        if mutant.key in harmless:
            row = {**asdict(mutant), "result": "equivalent", "why": harmless[mutant.key]}
        elif row is None or row["result"] == "equivalent" or (again and row["result"] == "survived"):
            first, *_ = tests_of(mutant.module)  # modules whose tests begin alike take about as long
            if first not in limits:
                limits[first] = _limit(mutant.module)
            source = mutated(mutant.module, mutant.operator, mutant.occurrence)
            result, test, seconds = run_tests(mutant.module, source, limits[first])
            result = {"passed": "survived", "failed": "killed"}.get(result, result)
            row = {**asdict(mutant), "result": result, "test": test, "seconds": round(seconds, 1)}
            print(f"{result:<9} {mutant.module}:{mutant.line}  {mutant.after}", flush=True)
            if result == "survived":
                print(f"          was: {mutant.before}   ({mutant.operator})", flush=True)
        found.append(row)
        known[mutant.key] = row
        _write(out, known.values())
    return found


def _limit(module: str) -> float:
    """Seconds that a mutant's tests may take.

    Raises:
        SystemExit: the tests do not pass without any mutant, so they would show nothing.
    """
    result, test, seconds = run_tests(module, None, 600.0)
    if result != "passed":
        print(LAST_OUTPUT.read_text(encoding="utf-8", errors="replace")[-4000:])
        sys.exit(f"{module}: its tests do not pass as it is ({result} {test}): {' '.join(tests_of(module))}")
    print(f"          {module}: its tests take {seconds:.1f} s", flush=True)
    return 30.0 + 5.0 * seconds


def _write(out: Path, rows: Any) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".tmp")
    unfinished.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    unfinished.replace(out)


def report(rows: Sequence[dict[str, Any]]) -> float:
    """Print the figures by module; returns the share of those that are not equivalent and were killed."""
    by_module: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_module[row["module"]][row["result"]] += 1
    print(f"\n{'module':<28} mutants  killed  too slow  equivalent  alive")
    total: Counter[str] = Counter()
    for module, counts in sorted(by_module.items()):
        total += counts
        _line(module, counts)
    _line("all", total)
    real = sum(total.values()) - total["equivalent"]
    share = (total["killed"] + total["timeout"]) / real if real else 1.0
    print(f"{share:.1%} of {real} that are not equivalent are killed")
    return share


def _line(name: str, counts: Counter[str]) -> None:
    shown = [counts[result] for result in ("killed", "timeout", "equivalent", "survived")]
    print(f"{name:<28} {sum(shown):>7} {shown[0]:>7} {shown[1]:>9} {shown[2]:>11} {shown[3]:>6}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=200, help="mutants of the sample")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", nargs="+", default=["*"], help="modules, as patterns below rs_aligner/")
    parser.add_argument("--list", action="store_true", help="show the sample only")
    parser.add_argument("--again", choices=("all", "survivors"), help="run what was run before, too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.jsonl")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    mutants = sample(asked.number, asked.seed, asked.only)
    if asked.list:
        for mutant in mutants:
            print(f"{mutant.module}:{mutant.line}  {mutant.before}\n    {mutant.operator}: {mutant.after}")
        return 0
    preload([mutant.module for mutant in mutants])
    return 0 if report(run(mutants, asked.out, asked.again)) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
