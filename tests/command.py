"""The command `rs-aligner`, called in this process."""

from __future__ import annotations

from collections.abc import Sequence

from rs_aligner.cli.main import main


def status_of(arguments: Sequence[str]) -> int:
    """The status that it would end with."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
