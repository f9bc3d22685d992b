"""The pictures of a page, from figures: what is in each, in which order, and what is said of it.

A `Picture` holds paths and words, `templates/picture.svg` draws it, and a table below has its numbers. A
figure that a run does not have leaves no line, and a picture without lines is left out. Left out on purpose:
which figures a run has at what step (`curves`), and what the rollouts look like (`distributions`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, TypeVar

from rs_aligner.report.axes import Field, Points, field_of

MOST_POINTS = 300  # of a line; more than there are pixels tell nothing
MOST_ROWS = 12  # of a table
Item = TypeVar("Item")
Style = Literal["line", "dots", "boxes", "outline", "cloud"]


@dataclass(frozen=True)
class Shape:
    """Something drawn: paths in the colour of a number, with its name in the legend."""

    name: str
    style: Style
    colour: int
    path: str
    errors: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers as text: a head, and rows as long as it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """What a picture says of itself besides what is drawn.

    Attributes:
        id: of its element.
        title: what is shown.
        note: what has to be known to read it.
        keys: of metrics, whose meanings are linked.
    """

    id: str
    title: str
    y_label: str
    x_label: str = "step"
    note: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One picture of the page; `said` is what is seen in it, for who does not see it."""

    frame: Frame
    said: str
    field: Field
    shapes: tuple[Shape, ...]
    table: Table


@dataclass(frozen=True)
class Curve:
    """A figure over steps.

    Attributes:
        points: (step, value), in order.
        errors: standard errors, as long as the points; empty for none.
    """

    name: str
    points: Points
    errors: Sequence[float] = ()
    dots: bool = False


def lines(frame: Frame, curves: Sequence[Curve]) -> Picture | None:
    """Curves over steps, thinned where they have more points than can be seen; None without any."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    ends = [
        value + sign * NUM_ERRORS * error
        for curve in curves
        for (_, value), error in zip(curve.points, curve.errors, strict=False)
        for sign in (-1, 1)
    ]
    values = [value for curve in curves for _, value in curve.points]
    at = field_of([x for curve in curves for x, _ in curve.points], [*values, *ends], whole_x=True)
    shapes = []
    for place, curve in enumerate(curves, start=1):
        bars = [
            (x, y - NUM_ERRORS * error, y + NUM_ERRORS * error)
            for (x, y), error in zip(curve.points, curve.errors, strict=False)
        ]
        drawn = thinned(curve.points)
        style: Style = "dots" if curve.dots or len(drawn) == 1 else "line"
        marks = at.dots(drawn) if style == "dots" else ""
        shapes.append(Shape(curve.name, style, place, at.line(drawn), at.errors(bars), marks))
    note = frame.note
    longest = max(len(curve.points) for curve in curves)
    if longest > MOST_POINTS:
        note = f"{note} Each point is the mean of {_joined(longest, MOST_POINTS)} steps.".strip()
    said = "; ".join(_said(curve) for curve in curves)
    return Picture(replace(frame, note=note), said, at, tuple(shapes), _table(frame.x_label, curves))


NUM_ERRORS = 2.0
"""Standard errors on either side of a point: about 95 of 100 such bars hold what they measure."""


def stacked(frame: Frame, curves: Sequence[Curve]) -> Picture | None:
    """Figures of each step on top of each other, as bars; None without any."""
    curves = [curve for curve in curves if any(value for _, value in curve.points)]
    if not curves:
        return None
    steps = sorted({x for curve in curves for x, _ in curve.points})
    groups = _grouped(steps, MOST_POINTS // 3)
    below = [0.0] * len(groups)
    boxes: list[list[tuple[float, float, float, float]]] = []
    for curve in curves:
        known, row = dict(curve.points), []
        for place, group in enumerate(groups):
            top = below[place] + fmean(known.get(step, 0.0) for step in group)
            row.append((group[0] - 0.45, group[-1] + 0.45, below[place], top))
            below[place] = top
        boxes.append(row)
    at = field_of([steps[0] - 0.5, steps[-1] + 0.5], [0.0, *below], whole_x=True, zero=True)
    shapes = [
        Shape(curve.name, "boxes", place, at.boxes(row))
        for place, (curve, row) in enumerate(zip(curves, boxes, strict=True), start=1)
    ]
    note = frame.note
    if len(groups) < len(steps):
        note = f"{note} Each bar is the mean of {len(groups[0])} steps.".strip()
    sums = ", ".join(f"{curve.name} {number(sum(y for _, y in curve.points))}" for curve in curves)
    said = f"Over all steps: {sums}"
    return Picture(replace(frame, note=note), said, at, tuple(shapes), _table(frame.x_label, curves))


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """The points, or means of neighbours where there are more than `most`."""
    if len(points) <= most:
        return points
    groups = _grouped(list(points), most)
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _grouped(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """Neighbours together, equally many in each group but the last, in at most so many groups."""
    size = _joined(len(items), most)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _joined(number: int, most: int) -> int:
    """How many neighbours are one, so that so many items are at most `most`."""
    return max(1, math.ceil(number / most))


def _said(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    if len(curve.points) == 1:
        return f"{curve.name}: {number(last[1])} at {last[0]:g}"
    return f"{curve.name}: from {number(first[1])} at {first[0]:g} to {number(last[1])} at {last[0]:g}"


def _table(x_label: str, curves: Sequence[Curve]) -> Table:
    """Some of the rows, the first and the last among them."""
    steps = sorted({x for curve in curves for x, _ in curve.points})
    shown, note = spread(steps, MOST_ROWS)
    rows = []
    for step in shown:
        cells = [f"{step:g}"]
        for curve in curves:
            place = next((at for at, (x, _) in enumerate(curve.points) if x == step), None)
            cells.append("" if place is None else _cell(curve, place))
        rows.append(tuple(cells))
    return Table((x_label, *(curve.name for curve in curves)), tuple(rows), note)


def _cell(curve: Curve, place: int) -> str:
    value = curve.points[place][1]
    return with_error(value, curve.errors[place]) if curve.errors else number(value)


def spread(items: Sequence[Item], most: int) -> tuple[Sequence[Item], str]:
    """At most so many of the items, evenly, the first and the last among them; and a note on the others."""
    if len(items) <= most:
        return items, ""
    places = [round(place * (len(items) - 1) / (most - 1)) for place in range(most)]
    return [items[place] for place in places], f"{most} of {len(items)} rows; all are in metrics.jsonl."


def number(value: float) -> str:
    """A number for people: whole ones with thousands apart, others with three digits that count."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_error(value: float, error: float) -> str:
    """A figure with its standard error, which has two digits that count, and the figure as many."""
    if not error:
        return f"{number(value)} ± 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"
