"""`rs-aligner compare`: several runs on one page, and in short on the terminal.

Left out on purpose: what is compared (`report/compare.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rs_aligner.report.compare import Compared, Comparison, compare, write_page
from rs_aligner.report.pairing import Look

_MOST_SETTINGS = 12


def main(arguments: Sequence[str]) -> None:
    """Print a table, and write the page.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: a folder is no run, or there are fewer than two.
        SystemExit: the arguments cannot be read, or ask for help.
    """
    args = _parser().parse_args(arguments)
    found = compare(args.run)
    print(table(found))
    for warning in found.warnings:
        print(warning)
    for one in found.settings[:_MOST_SETTINGS]:
        print(f"{one.key}: {' | '.join(value or '-' for value in one.values)}")
    if len(found.settings) > _MOST_SETTINGS:
        print(f"... and {len(found.settings) - _MOST_SETTINGS} more settings differ")
    print(write_page(found, Path(args.out)))


def table(comparison: Comparison) -> str:
    """The runs, a line each; held-out scores with standard errors over prompts."""
    first = comparison.runs[0].name
    head = ["", "steps", "held out, first", "held out, last", f"against {first}", "tokens", "device seconds"]
    lines = [head, *(_line(one) for one in comparison.runs)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _line(one: Compared) -> list[str]:
    against = ""
    if one.gain is not None:
        how = f"paired, {one.gain.num_prompts} prompts" if one.gain.is_paired else "not paired"
        against = f"{one.gain.mean:+.4f}{_error(one.gain.error)} ({how})"
    return [
        one.name,
        str(one.steps),
        _look(one.start),
        _look(one.last),
        against,
        f"{one.tokens:,.0f}",
        f"{one.device_seconds:,.0f}",
    ]


def _look(look: Look | None) -> str:
    return "" if look is None else f"{look.mean:.4f}{_error(look.error)}"


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-aligner compare",
        description="Compare runs: where their settings differ, curves over steps, tokens and seconds, "
        "held-out scores (paired by prompt where both answered the same), the same prompts side by side. "
        "The first run is what the others are compared with.",
        epilog="Example: rs-aligner compare runs/plain runs/percentile, then open compare.html, a page that "
        "needs no server and no network.",
    )
    parser.add_argument("run", nargs="+", help="the folders of two runs or more")
    parser.add_argument("--out", default="compare.html", help="the page (default: compare.html)")
    return parser
