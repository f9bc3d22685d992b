"""`rs-aligner dataset`: the rollouts of a run as data for other programs, and for our own trainings.

Left out on purpose: what is in a row (`report/shapes.py`), and which rows there are (`report/dataset.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rs_aligner.report.dataset import Content, Wanted, write_dataset
from rs_aligner.report.run_data import open_run
from rs_aligner.report.shapes import Format


def main(arguments: Sequence[str]) -> None:
    """Write a data set, and say what is in it.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: there is no run, or nothing to write; with what is missing.
        SystemExit: the arguments cannot be read, or ask for help.
    """
    args = _parser().parse_args(arguments)
    content: Content = "pairs" if args.pairs else "all" if args.all else "kept"
    wanted = Wanted(content, args.format, args.bare, args.pairs_per_group)
    written = write_dataset(open_run(args.run), Path(args.out), wanted)
    left = f"; {written.duplicates:,} that were there already are left out" if written.duplicates else ""
    left += f"; {written.empty:,} without a text are left out" if written.empty else ""
    what = {"pairs": "pairs", "all": "answers", "kept": "kept answers"}[content]
    print(f"{args.out}: {written.rows:,} {what}{left}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-aligner dataset",
        description="Write the answers of a run as a data set, each text once, with scores and reasons.",
        epilog="Example: rs-aligner dataset runs/mine --pairs --format trl --out pairs.jsonl. It is read "
        "by rs-aligner sft (kept), reward-model (pairs) and model.rs.offline of train (all); "
        "docs/after_a_run.md has the columns.",
    )
    parser.add_argument("run", help="the folder of a run of rejection sampling")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--kept", action="store_true", help="the answers that were trained on")
    which.add_argument(
        "--pairs", action="store_true", help="a kept answer beside a rejected one that scores less"
    )
    which.add_argument("--all", action="store_true", help="every answer, kept or not")
    parser.add_argument("--format", choices=get_args(Format), default="trl", help="whose rows (default: trl)")
    parser.add_argument("--out", required=True, help="the file: .jsonl or .parquet")
    parser.add_argument("--bare", action="store_true", help="only the columns that the format itself has")
    parser.add_argument(
        "--pairs-per-group",
        type=_count,
        default=1,
        metavar="N",
        help="most pairs of a prompt's answers at a step: those furthest apart in score (default: 1)",
    )
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value
