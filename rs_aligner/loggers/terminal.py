"""A run on a terminal, drawn anew about once a second; log lines and prints go above it.

Where nobody looks (pipes, files, batch jobs, `TERM=dumb`) nothing is drawn. The terminal is left in order
however the process ends: the cursor is never hidden, and no other mode is set, so there is nothing that a
killed process would have to put right. It draws in a thread of its own, and so seldom that it takes at most
`SHARE` of a core. Nothing that goes wrong with it ends a run. Left out on purpose: what is seen (`scene`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner import progress
from rs_aligner.record.metrics import read_rows
from rs_aligner.record.sinks import Sampled

if TYPE_CHECKING:
    from rich.console import Console

_logger = logging.getLogger("rs_aligner")
SHARE = 0.005
"""Of a core, for drawing."""
LEAST_SECONDS = 1.0  # between two pictures
SHOWN = "RS_ALIGNER_SHOWN"  # set by whoever hands on what this process prints, if to a terminal


def can_draw() -> bool:
    """Whether somebody looks at what this process prints, on a terminal that can be drawn on."""
    shown = sys.stdout.isatty() or SHOWN in os.environ
    return shown and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class View:
    """Draws a run until it ends; a `record.sinks.Logger`.

    Args:
        folder: of the run.
        ends_early: whether the run may end before its last step.
        replicas: how many copies of the model sample.
    """

    def __init__(self, folder: Path, *, ends_early: bool = False, replicas: int = 1) -> None:
        from rs_aligner.loggers.scene import Scene

        rows: list[dict[str, float]] = []
        with contextlib.suppress(OSError, ValueError):  # none yet; or the run will tell what is wrong with it
            rows = read_rows(folder / "metrics.jsonl")
        self._scene = Scene(str(folder), ends_early=ends_early, replicas=replicas, rows=rows)
        self._over = threading.Event()
        self._undo = contextlib.ExitStack()
        self._draw: Any = None
        self._thread = threading.Thread(target=self._keep_drawing, name="view", daemon=True)

    def start(self) -> View:
        """Begin to draw, if the terminal lets it."""
        try:
            console = self._undo.enter_context(_console())
            if console.is_terminal and not console.is_dumb_terminal:
                self._begin(console)
        except Exception as error:  # whatever it is: a picture is not worth a run
            self._undo.close()
            _logger.warning("no live view: %s", error)
        return self

    def _begin(self, console: Console) -> None:
        from rich.live import Live

        live = Live(
            self._scene, console=console, auto_refresh=False, transient=False, vertical_overflow="crop"
        )
        self._undo.enter_context(progress.bars(False))
        self._undo.enter_context(live)
        self._undo.enter_context(_lines_above(console))
        self._undo.callback(self._end_thread)
        self._draw = live.refresh
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """The figures of a step."""
        self._scene.add_row(metrics, step)

    def log_rollouts(self, sampled: Sampled, step: int) -> None:
        """What it sampled."""
        self._scene.add_rollouts(sampled)

    def finalize(self, status: str) -> None:
        """Leave the last picture where it is, and the terminal as it was."""
        with contextlib.suppress(Exception):  # the terminal may be gone
            self._undo.close()

    def _end_thread(self) -> None:
        self._over.set()
        self._thread.join(timeout=2.0)  # a terminal that was halted with Ctrl-S takes nothing

    def _keep_drawing(self) -> None:
        wait = LEAST_SECONDS
        with contextlib.suppress(Exception):  # the terminal may be gone
            while not self._over.wait(wait):
                began = time.thread_time()
                self._scene.look()
                self._draw()
                wait = max(LEAST_SECONDS, (time.thread_time() - began) / SHARE)


@contextlib.contextmanager
def _console() -> Iterator[Console]:
    """On the standard error as it was when the process began, whoever has put something in its place since.

    W&B, for one, keeps a copy of what goes to `sys.stderr`, and the picture has texts that are to stay here.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Nothing: a process that is killed could not show it again."""
            return False

    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with os.fdopen(os.dup(2), "w", encoding=encoding, errors="backslashreplace") as file:
        yield PlainConsole(file=file, highlight=False, markup=False, emoji=False)


class _Above(logging.Handler):
    """Puts log lines above the picture."""

    def __init__(self, console: Console, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line, as the formatter makes it."""
        from rich.text import Text

        try:
            self._console.print(Text(self.format(record)), soft_wrap=True)
        except Exception:  # as of every handler
            self.handleError(record)


@contextlib.contextmanager
def _lines_above(console: Console) -> Iterator[None]:
    """Let the package's log lines go above the picture, as long as the block lasts."""
    before = _logger.handlers
    formatter = before[0].formatter if before else None
    _logger.handlers = [_Above(console, formatter)]
    try:
        yield
    finally:
        _logger.handlers = before
