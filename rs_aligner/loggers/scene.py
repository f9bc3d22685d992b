"""What is seen of a run on a terminal: how far it is, its last steps, two answers, the judge.

Drawn with rich from what the loops have noted (`progress`) and sinks have been told. Nothing of a model's
text acts: it is put in as text, on one line, without controls (`harmless`). Left out on purpose: the terminal
itself and when it is drawn (`terminal`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment

from rs_aligner import progress, stopping
from rs_aligner.harmless import one_line
from rs_aligner.record.sinks import Example, Sampled

_COLUMNS = (
    ("all", "reward/mean"),
    ("kept", "reward/kept_mean"),
    ("random", "control/random_mean"),
    ("held-out", "validation/reward"),
    ("watched", "validation/watched"),
    ("right", "accuracy"),
    ("held-out right", "validation/accuracy"),
    ("held-out loss", "validation/loss"),
    ("loss", "loss"),
    ("tokens", "response_length/mean"),
    ("n kept", "rollouts/kept"),
    ("rate", "lr"),
    ("seconds", "time/step"),
)
"""Names of columns and figures, in the order in which they are given room."""
_MOST_ROWS = 12
_REMEMBERED = 64  # rows, and changes of the step for its pace
_LINES_A_TEXT = 2
Line = tuple[str, str]
"""A line, and the name of its style."""


@dataclass
class Pace:
    """How long steps take, by when each began; validations and checkpoints count with the step before."""

    began: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def look(self, now: float, step: int) -> None:
        """Note that a step is at work now."""
        if step > 0 and (not self.began or step != self.began[-1][1]):
            self.began.append((now, step))

    def seconds_left(self, now: float, step: int, steps: int | None) -> float | None:
        """Of the whole run; None before the first step has ended, and where its length is not known."""
        if steps is None or len(self.began) < 2:
            return None
        (first, lowest), (last, highest) = self.began[0], self.began[-1]
        each = (last - first) / (highest - lowest)
        return max((steps - step + 1) * each - (now - last), 0.0)


class Scene:
    """The picture of a run as it is now; rich renders it.

    Args:
        name: of the run.
        ends_early: whether the run may end before its last step.
        replicas: how many copies of the model sample, of which this process sees one.
        rows: figures of steps that earlier starts made.
    """

    def __init__(
        self,
        name: str,
        *,
        ends_early: bool = False,
        replicas: int = 1,
        rows: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._name, self._ends_early, self._replicas = one_line(name, 60), ends_early, replicas
        self._rows: deque[Mapping[str, float]] = deque(rows, maxlen=_REMEMBERED)
        self._first_look = next((row for row in rows if "validation/reward" in row), None)
        self._examples: list[Example] = []
        self._failure: str | None = None
        self._began, self._pace = time.monotonic(), Pace()

    def add_row(self, metrics: Mapping[str, float], step: int) -> None:
        """The figures of a step."""
        row = {**metrics, "step": step}
        self._rows.append(row)
        if self._first_look is None and "validation/reward" in row:
            self._first_look = row

    def add_rollouts(self, sampled: Sampled) -> None:
        """What a step, or a look at held-out prompts, sampled."""
        self._failure = sampled.last_failure() or self._failure
        if sampled.selection is not None or not self._examples or self._examples[0].fate == "held-out":
            self._examples = sampled.examples(1) or self._examples

    def look(self) -> None:
        """Note where the run is."""
        self._pace.look(time.monotonic(), progress.current().step)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self.lines(options.max_width, options.size.height)
        for line, style in lines:
            yield Segment(line, console.get_style(style) if style else None)
            yield Segment.line()
        yield Segment("")  # what comes when this process is killed stands on a line of its own

    def lines(self, width: int, height: int) -> list[Line]:
        """The picture, as lines with rich's names of their styles; none is wider than `width` cells."""
        head, judge = self._head(width), self._judge(width)
        left = height - len(head) - len(judge) - 1
        texts = self._texts(width) if left > 10 else []
        table = self._table(width, min(left - len(texts), _MOST_ROWS + 1))
        return [(_cut(line, width), style) for line, style in (*head, *table, *texts, *judge)]

    def _head(self, width: int) -> list[Line]:
        now, doing, counts = time.monotonic(), progress.current(), progress.counts()
        step, steps = doing.step, doing.steps
        where = f"step {step:,} of {steps:,}" if steps else f"step {step:,}" if step else ""
        what: str = doing.phase
        if what in ("sampling", "scoring", "validating") and counts.total:
            what += f" {counts.sampled:,} of {counts.total // self._replicas:,} answers"
        if (
            stopping.is_asked()
        ):  # on the same line: a picture that grows under a log line leaves its top behind
            where, what = f"stopping ({one_line(stopping.reason(), width)})", f"{where}  {what}"
        found: list[Line] = [("  ".join(one for one in (where, what, self._name) if one), "bold")]
        if steps:
            is_over = what in ("exporting", "finished")
            full = min(40, max(width - 50, 4))
            done = full * (steps if is_over else max(step - 1, 0)) // steps
            left = None if is_over else self._pace.seconds_left(now, step, steps)
            bar = "━" * done + "·" * (full - done)
            found.append((f"{bar}  {self._time(now, left, is_over=is_over)}", "cyan"))
        return found

    def _time(self, now: float, left: float | None, *, is_over: bool) -> str:
        gone = f"{duration(now - self._began)} gone"
        if is_over:
            return gone
        if left is None:
            return f"{gone}, how much is left shows after a step"
        return f"{gone}, {'at most ' if self._ends_early else ''}about {duration(left)} left"

    def _table(self, width: int, most: int) -> list[Line]:
        """The last rows that there is room for, under the names of the figures that any of them has."""
        rows = list(self._rows)[1 - most :] if most > 1 else []
        there = [(name, key) for name, key in _COLUMNS if any(key in row for row in self._rows)]
        columns = [["step", *(f"{row['step']:g}" for row in rows)]]
        columns += [[name, *(_figure(row.get(key)) for row in rows)] for name, key in there]
        lines, room = [""] * (len(rows) + 1), width
        for column in columns:
            wide = max(map(len, column)) + 2
            if wide > room:
                break
            room -= wide
            lines = [line + cell.rjust(wide) for line, cell in zip(lines, column, strict=True)]
        return [(line, "" if number else "bold") for number, line in enumerate(lines)] if rows else []

    def _texts(self, width: int) -> list[Line]:
        """The prompt, and under it the answers; two lines each at most."""
        if not self._examples:
            return []
        found: list[Line] = [(f"prompt  {one_line(self._examples[0].prompt, 4 * width)}", "dim")]
        for one in self._examples:
            score = "no score" if one.reward is None else f"{one.reward:.4g}"
            watched = "" if one.watched is None else f" (watched {one.watched:.4g})"
            why = f", {one_line(one.reason, 40)}" if one.fate == "rejected" else ""
            style = {"kept": "green", "rejected": "red"}.get(one.fate, "cyan")
            found.append((f"{one.fate} {score}{watched}{why}", style))
            parts = chop_cells(one_line(one.response, _LINES_A_TEXT * width), width - 2)
            found += [(f"  {part}", "") for part in parts[:_LINES_A_TEXT]]
        return found

    def _judge(self, width: int) -> list[Line]:
        counts = progress.counts()
        if not counts.all_judged:
            return []
        said = f"judge  {counts.all_judged - counts.all_failed:,} answers scored"
        if counts.seconds > 0 and counts.judged:
            said += f", {counts.judged / counts.seconds:,.3g} a second in this round"
        said += f", {counts.all_failed:,} failed"
        if waiting := max(counts.sampled - counts.judged, 0):
            said += f", {waiting:,} waiting"
        if self._replicas > 1:
            said += f" (of the first of {self._replicas} replicas)"
        found: list[Line] = [(said, "red" if counts.all_failed else "")]
        if self._failure:
            found.append((f"  the last failure: {one_line(self._failure, width)}", "red"))
        return found


def duration(seconds: float) -> str:
    """Days, hours, minutes or seconds, the two largest that count."""
    whole = round(seconds)
    for large, unit, small, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            return f"{whole // large} {unit} {whole % large // small} {part}"
    return f"{whole} s"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def _cut(line: str, width: int) -> str:
    """No wider than so many cells of a terminal, of which some characters take two."""
    if len(line) * 2 <= width or cell_len(line) <= width:
        return line
    return f"{set_cell_size(line, width - 1).rstrip()}…"
