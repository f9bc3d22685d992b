"""`rs-aligner report`: the page of a run, written anew. Left out on purpose: the page (`report/page.py`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rs_aligner.exit_status import FINISHED, TO_BE_MENDED


def main(arguments: Sequence[str]) -> int:
    """Write the page of each run, and print where it is.

    Args:
        arguments: of the command line.

    Returns:
        The status to end with; what is wrong with a run is printed, and the next one is written.

    Raises:
        SystemExit: the arguments cannot be read, or ask for help.
    """
    args = _parser().parse_args(arguments)
    from rs_aligner.report.page import write_report

    status = FINISHED
    for run in args.run:
        try:
            print(write_report(Path(run)))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = TO_BE_MENDED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-aligner report",
        description="Write report.html into a run's folder: did it work, what it cost, what to worry about, "
        "curves, distributions and every rollout, as one page that needs no server and no network. A "
        "training does so itself at its end and after validations, unless exp_manager.report=false.",
        epilog="Example: rs-aligner report runs/mine, then open runs/mine/report.html. A run that goes on "
        "may be looked at, too. docs/report.md says what is on the page.",
    )
    parser.add_argument("run", nargs="+", help="the folder of a run: what exp_manager.explicit_log_dir was")
    return parser
