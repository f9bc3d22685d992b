"""A run on a terminal, drawn anew about once a second; log lines and prints go above it.

Where nobody looks (pipes, files, batch jobs, `TERM=dumb`) nothing is drawn. The terminal is left in order
however the process ends: the cursor is never hidden, and no other mode is set, so there is nothing that a
killed process would have to put right. It draws in a thread of its own, and so seldom that it takes at most
`SHARE` of a core. Nothing that goes wrong with it ends a run. Left out on purpose: what is seen (`scene`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rs_aligner import progress
from rs_aligner.harmless import one_line
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
            self._scene,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._undo.enter_context(progress.bars(False))
        self._undo.callback(_alone(console, live.stop))
        self._draw = _alone(console, live.refresh)
        _alone(console, partial(live.start, refresh=True))()
        self._undo.enter_context(_lines_above(console))
        self._undo.callback(self._end_thread)
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
        """As rich's, but a line is drawn, with the picture below it, before another thread may draw.

        Rich lets two threads ask both how high the picture is that each of them then draws anew.
        """

        drawing = threading.RLock()

        def print(self, *what: Any, **how: Any) -> None:
            """Draw, alone."""
            with self.drawing:
                super().print(*what, **how)

        def show_cursor(self, show: bool = True) -> bool:
            """Nothing: a process that is killed could not show it again."""
            return False

    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with os.fdopen(os.dup(2), "w", encoding=encoding, errors="backslashreplace") as file:
        yield PlainConsole(file=file, highlight=False, markup=False, emoji=False)


def _alone(console: Any, call: Callable[[], None]) -> Callable[[], None]:
    """A call of rich's that draws, while no other thread does."""

    def alone() -> None:
        with console.drawing:
            call()

    return alone


class _Above(io.TextIOBase):
    """Stands in for a standard stream: whole lines go above the picture; controls in them do nothing."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console, self._stream, self._rest = console, stream, ""

    def write(self, text: str) -> int:
        """Show the lines that end; of one that was written over, as by a bar, what stood there last."""
        from rich.text import Text

        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            shown = line.rstrip("\r").rpartition("\r")[2]
            self._console.print(Text(one_line(shown, len(shown))), soft_wrap=True)
        return len(text)

    def end(self) -> None:
        """Show what has no end of a line yet."""
        if self._rest:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """As of the stream."""
        return self._stream.isatty()


@contextlib.contextmanager
def _lines_above(console: Console) -> Iterator[None]:
    """Let what is printed and logged go above the picture, as long as the block lasts."""
    out, err = sys.stdout, sys.stderr
    above, errors = _Above(console, out), _Above(console, err)
    handlers = [one for one in _logger.handlers if isinstance(one, logging.StreamHandler)]
    streams = [one.setStream(above) for one in handlers]
    with contextlib.redirect_stdout(above), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            above.end()
            errors.end()
            for handler, stream in zip(handlers, streams, strict=True):
                if stream is not None:
                    handler.setStream(stream)
