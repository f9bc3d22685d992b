"""Adds a run with other packages than the pinned ones to a JSON file: its entry is replaced, others stay.

    python scripts/tests_record.py JUNIT.xml RECORD.json 0.19.2 "tests -m 'not slow'" megatron-core torch

An entry has the versions of these packages, what was run, how many tests passed, failed (errors among them)
and were skipped, the names of those that failed, and how many were skipped for which reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any


def summed(junit: Path) -> dict[str, Any]:
    """What a JUnit file of pytest's says."""
    failures: list[str] = []
    skipped: Counter[str] = Counter()
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif (skip := case.find("skipped")) is not None:
            skipped[skip.get("message", "").partition(" (")[0]] += 1  # what is in brackets is of one machine
    assert cases, f"{junit} has no tests"
    passed = len(cases) - len(failures) - skipped.total()
    counts = {"passed": passed, "failed": len(failures), "skipped": skipped.total()}
    return {**counts, "failures": sorted(failures), "skipped_for": dict(sorted(skipped.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("junit", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("name", help="of the entry")
    parser.add_argument("tests", help="what pytest was given")
    parser.add_argument("packages", nargs="+")
    args = parser.parse_args()
    versions = {name: version(name) for name in sorted(args.packages)}
    record = json.loads(args.record.read_text()) if args.record.is_file() else {}
    run = {"python": platform.python_version(), "versions": versions, "tests": args.tests}
    record[args.name] = run | summed(args.junit)
    args.record.write_text(json.dumps(dict(sorted(record.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
