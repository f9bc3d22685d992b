"""The page of a run while it goes on, and at its end, and its model's card: sinks of figures, as loggers are.

It writes the page after a validation, as long as all that it has cost stays below `SHARE` of the CPU time
that this process has used, and at the end in any case, if time is left. Nothing that goes wrong with a page
ends a run: it is told in a warning. Left out on purpose: the page (`page`), which is imported when the first
one is written.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from rs_aligner import stopping
from rs_aligner.record.format import FILE as RUN_FILE
from rs_aligner.report.summed_row import SUMS_FILE

_logger = logging.getLogger("rs_aligner")

SHARE = 0.01
"""Of a run's CPU time, for pages while it goes on."""
_FIRST_SECONDS = 1.5  # of CPU time: imports, and templates compiled
_SECONDS_A_BYTE = 1 / 15e6  # of the ledger
_MARGIN = 2.0  # seconds of the clock for one of CPU time
_LEAST = 5.0  # seconds that have to be left for a page of a run that was asked to stop


class LivePage:
    """Writes the page of a run; a `record.sinks.Logger`.

    Args:
        folder: of the run.
        check_owner: raises where the folder is another run's by now; nothing is written then.
        cpu_seconds: that this process has used.
    """

    def __init__(
        self,
        folder: Path,
        check_owner: Callable[[], None] = lambda: None,
        *,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self.folder, self._check_owner, self._cpu_seconds = folder, check_owner, cpu_seconds
        self._spent = 0.0
        self._each = _FIRST_SECONDS  # a page without anything new
        self._has_told = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write the page behind a validation, if it is not too dear."""
        if not any(key.startswith("validation/") for key in metrics):
            return
        if self._spent + self._expected() <= SHARE * self._cpu_seconds():
            self._write()

    def finalize(self, status: str) -> None:
        """Write the page at the end of the run, and say where it is."""
        if not (self.folder / RUN_FILE).exists():
            return  # the run never began to write
        if stopping.seconds_left() < _LEAST + _MARGIN * self._expected():
            _logger.warning("no time was left for the report: rs-aligner report %s writes it", self.folder)
            return
        if (path := self._write()) is not None:
            _logger.info("report: %s", path)

    def _write(self) -> Path | None:
        began, path = self._cpu_seconds(), None
        try:
            from rs_aligner.report.page import write_report

            path = write_report(self.folder, self._check_owner)
        except Exception as error:  # whatever it is: a page is not worth a run
            if not self._has_told:
                self._has_told = True
                _logger.warning("the report was not written (told once): %s", _one_line(error))
        self._each = self._cpu_seconds() - began
        self._spent += self._each
        return path

    def _expected(self) -> float:
        """CPU seconds that the next page is likely to take."""
        return self._each + self._unread() * _SECONDS_A_BYTE

    def _unread(self) -> int:
        """Bytes of the ledger that were written since the last page."""
        with contextlib.suppress(OSError):  # the run takes steps back meanwhile
            there = [path.stat() for path in (self.folder / "rollouts").glob("*.jsonl")]
            sums = self.folder / "report" / SUMS_FILE
            since = sums.stat().st_mtime_ns if sums.exists() else -1
            return sum(one.st_size for one in there if one.st_mtime_ns > since)
        return 0


class CardWriter:
    """Writes the model card at the end of a run that finished; a `record.sinks.Logger`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Nothing: there is no model yet."""

    def finalize(self, status: str) -> None:
        """Write it; what goes wrong is told, and ends nothing."""
        if not (self.folder / "final").is_dir():
            return
        try:
            from rs_aligner.report.card import write_card

            write_card(self.folder)
        except Exception as error:  # whatever it is: the model is there, and good without
            _logger.warning("final/ has no model card: %s", _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
