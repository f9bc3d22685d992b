"""From numbers to places in a picture: scales, round ticks, and the paths that templates draw.

Pictures are drawn by `templates/picture.svg`, so that whatever is text in them is escaped like all of the
page. Left
out on purpose: colours and fonts, which the page's style sheet has for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 240  # of a picture; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 70, 428, 10, 196  # of the field in it
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A straight line from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a number is."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, and what stands there."""

    place: float
    label: str


@dataclass(frozen=True)
class Field:
    """Both scales of a picture, with their ticks."""

    x: Scale
    y: Scale
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    def line(self, points: Points) -> str:
        """A path through the points."""
        return "M" + "L".join(self._pairs(points)) if points else ""

    def dots(self, points: Points) -> str:
        """A path with a dot at each point; how large it is, is the line's width."""
        return "".join(f"M{pair}h0" for pair in self._pairs(points))

    def errors(self, bars: Iterable[tuple[float, float, float]]) -> str:
        """A path of error bars: (x, low, high)."""
        found = []
        for x, low, high in bars:
            at, top, bottom = self.x.at(x), self.y.at(high), self.y.at(low)
            found.append(
                f"M{at:.1f} {top:.1f}V{bottom:.1f}M{at - 3:.1f} {top:.1f}h6M{at - 3:.1f} {bottom:.1f}h6"
            )
        return "".join(found)

    def boxes(self, boxes: Iterable[tuple[float, float, float, float]]) -> str:
        """A path of rectangles: (left, right, low, high)."""
        found = []
        for left, right, low, high in boxes:
            if high > low:
                x, y = self.x.at(left), self.y.at(low)
                found.append(f"M{x:.1f} {y:.1f}V{self.y.at(high):.1f}H{self.x.at(right):.1f}V{y:.1f}z")
        return "".join(found)

    def outline(self, boxes: Sequence[tuple[float, float, float]]) -> str:
        """The line around bars on 0, also where there is a gap between two: (left, right, high)."""
        if not boxes:
            return ""
        zero = self.y.at(0)
        path = [f"M{self.x.at(boxes[0][0]):.1f} {zero:.1f}"]
        before = boxes[0][0]
        for left, right, high in boxes:
            if left > before + 1e-9 * (right - left):
                path.append(f"V{zero:.1f}")
            before = right
            path.append(f"H{self.x.at(left):.1f}V{self.y.at(high):.1f}H{self.x.at(right):.1f}")
        return "".join(path) + f"V{zero:.1f}"

    def _pairs(self, points: Points) -> list[str]:
        return [f"{self.x.at(x):.1f} {self.y.at(y):.1f}" for x, y in points]


def field_of(xs: Iterable[float], ys: Iterable[float], *, whole_x: bool = False, zero: bool = False) -> Field:
    """A field in which all of these numbers are.

    Args:
        xs, ys: at least one of each.
        whole_x: x counts something, so that only whole numbers are ticks.
        zero: y begins at 0, as the height of bars has to.
    """
    x = _scale(list(xs), LEFT, RIGHT, zero=False, tight=whole_x)
    y = _scale(list(ys), BOTTOM, TOP, zero=zero, tight=False)
    return Field(x, y, _ticks(x, 6, whole=whole_x), _ticks(y, 5))


def _scale(values: list[float], start: float, end: float, *, zero: bool, tight: bool) -> Scale:
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.0 if tight else 0.05 * (high - low)
    top = high + margin
    low = low if zero and low == 0 else low - margin
    if top <= low:  # one value, or all the same
        some = abs(high) * 0.1 or 0.5
        low, top = (0.0, high + some) if zero else (low - some, high + some)
    return Scale(low, top, start, end)


def _ticks(scale: Scale, most: int, *, whole: bool = False) -> tuple[Tick, ...]:
    """At most so many round numbers, 1, 2 or 5 times a power of ten apart."""
    step = _round_step((scale.high - scale.low) / most)
    if whole:
        step = max(step, 1.0)
    first, found = math.ceil(scale.low / step - 1e-9), []
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    while first * step <= scale.high + 1e-9 * step:
        found.append(Tick(round(scale.at(first * step), 1), label(first * step, digits)))
        first += 1
    return tuple(found)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def label(value: float, digits: int) -> str:
    """A tick's number: thousands as k and millions as M, tiny ones with an exponent."""
    value += 0.0  # no -0
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    if digits > 4:
        power = math.floor(math.log10(abs(value))) if value else 0
        return f"{value / 10.0**power:.3g}e{power}" if value else "0"
    return f"{value:.{digits}f}"
