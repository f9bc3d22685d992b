"""Pictures of all rollouts of a run: scores, lengths, tries, pass rates, score against length.

They are made of the run's sums, so they cost the same for a hundred rollouts and for a million. Left out on
purpose: summing up (`sums`), and how a picture is drawn (`pictures`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rs_aligner.report.axes import field_of
from rs_aligner.report.histogram import Bar, Histogram, common_exponent
from rs_aligner.report.pictures import MOST_ROWS, Frame, Picture, Shape, Style, Table, number, spread
from rs_aligner.report.sums import Sums


def distributions(sums: Sums) -> Iterator[Picture]:
    """Those of them that there is something for."""
    frame = Frame(
        "score-shares",
        "How scores are spread",
        "% of them",
        "score",
        "In percent of all scored rollouts of the run, and of the kept ones.",
    )
    if sums.scores.number:
        yield _histograms(frame, {"all": sums.scores, "kept": sums.kept_scores})
    frame = Frame("length-shares", "How long answers are", "% of them", "tokens")
    if sums.lengths.number:
        yield _histograms(frame, {"all": sums.lengths})
    if len(sums.tries) > 1:
        yield _tries(sums.tries)
    if sum(sums.pass_rates):
        yield _pass_rates(sums.pass_rates)
    if sums.points:
        yield _scatter(sums)


def _histograms(frame: Frame, histograms: dict[str, Histogram]) -> Picture:
    histograms = {name: one for name, one in histograms.items() if one.number}
    exponent = common_exponent(*histograms.values())
    shares: dict[str, list[Bar]] = {name: list(one.bars(exponent)) for name, one in histograms.items()}
    boxes = {name: _boxes(bars, histograms[name].number) for name, bars in _wide(shares).items()}
    every = [box for row in boxes.values() for box in row]
    at = field_of(
        [x for left, right, _ in every for x in (left, right)], [high for *_, high in every], zero=True
    )
    shapes = []
    for place, (name, row) in enumerate(boxes.items()):
        style: Style = "boxes" if place == 0 else "outline"
        path = (
            at.boxes((left, right, 0, high) for left, right, high in row) if place == 0 else at.outline(row)
        )
        shapes.append(Shape(f"{name} ({histograms[name].number:,})", style, place + 1, path))
    said = ", ".join(
        f"mean of {name} {number(one.mean)}" for name, one in histograms.items() if one.mean is not None
    )
    table = _table(frame.x_label, shares, {name: one.number for name, one in histograms.items()})
    return Picture(frame, said, at, tuple(shapes), table)


def _wide(bars: dict[str, list[Bar]]) -> dict[str, list[Bar]]:
    """Values that are counted by themselves get some width, so that there is something to see."""
    values = sorted({bar.low for row in bars.values() for bar in row if bar.low == bar.high})
    if not values:
        return bars
    least = min((right - left for left, right in itertools.pairwise(values)), default=1.0)
    half = 0.4 * max(least, (values[-1] - values[0]) / 100)
    known = {name: {bar.low: bar.count for bar in row} for name, row in bars.items()}
    return {
        name: [one for value in values for one in (Bar(value - half, value + half, counts.get(value, 0)),)]
        for name, counts in known.items()
    }


def _boxes(bars: Sequence[Bar], total: int) -> list[tuple[float, float, float]]:
    return [(bar.low, bar.high, 100 * bar.count / total) for bar in bars]


def _table(x_label: str, bars: dict[str, list[Bar]], totals: dict[str, int]) -> Table:
    counts = {name: {(bar.low, bar.high): bar.count for bar in row} for name, row in bars.items()}
    places = sorted({place for row in counts.values() for place, count in row.items() if count})
    shown, _ = spread(places, MOST_ROWS)
    rows = []
    for low, high in shown:
        name = number(low) if low == high else f"{number(low)} to below {number(high)}"
        cells = (
            f"{row.get((low, high), 0):,} ({row.get((low, high), 0) / totals[key]:.1%})"
            for key, row in counts.items()
        )
        rows.append((name, *cells))
    note = f"{len(shown)} of {len(places)} rows." if len(shown) < len(places) else ""
    return Table((x_label, *counts), tuple(rows), note)


def _bars(frame: Frame, named: Sequence[tuple[str, float, int]], said: str) -> Picture:
    """Bars of counts: (name, place, count)."""
    total = sum(count for *_, count in named)
    places = [place for _, place, _ in named]
    at = field_of([min(places) - 0.5, max(places) + 0.5], [count for *_, count in named], zero=True)
    shape = Shape(
        f"prompts ({total:,})",
        "boxes",
        1,
        at.boxes((place - 0.4, place + 0.4, 0, count) for _, place, count in named),
    )
    rows = tuple((name, f"{count:,} ({count / total:.1%})") for name, _, count in named if count)
    shown, note = spread(rows, MOST_ROWS)
    table = Table((frame.x_label, frame.y_label), tuple(shown), "" if not note else f"{len(shown)} of them.")
    return Picture(frame, said, at, (shape,), table)


def _tries(tries: dict[int, int]) -> Picture:
    mean = sum(size * count for size, count in tries.items()) / sum(tries.values())
    frame = Frame("tries", "Answers that were sampled to a prompt", "prompts", "answers in a step")
    named = [(f"{size}", float(size), count) for size, count in sorted(tries.items())]
    return _bars(frame, named, f"{number(mean)} on average")


def _pass_rates(rates: Sequence[int]) -> Picture:
    total = sum(rates)
    frame = Frame(
        "pass-rates",
        "How many of a prompt's answers pass",
        "prompts",
        "% of its answers",
        "The bars at the ends are prompts of which no answer passes, and all; the others take in a tenth "
        "each. Prompts in between are those that teach.",
        ("pass_at/<k>", "groups/none_passed"),
    )
    names = ["none", *(f"up to {10 * k} %" for k in range(1, 10)), "above 90 %, not all", "all"]
    named = [
        (name, 10 * (place - 0.5), count)
        for place, (name, count) in enumerate(zip(names, rates, strict=True))
    ]
    at = field_of([-12, 112], list(rates), zero=True)
    shape = Shape(
        f"prompts ({total:,})",
        "boxes",
        1,
        at.boxes((place - 4, place + 4, 0, count) for _, place, count in named),
    )
    rows = tuple((name, f"{count:,} ({count / total:.1%})") for name, _, count in named)
    said = f"of {rates[0] / total:.0%} of the prompts none, of {rates[-1] / total:.0%} all"
    return Picture(frame, said, at, (shape,), Table(("answers that pass", "prompts"), rows))


def _scatter(sums: Sums) -> Picture:
    points = sums.points
    at = field_of([point.length for point in points], [point.score for point in points])
    shapes = [
        Shape(name, "cloud", colour, at.dots([(point.length, point.score) for point in chosen]))
        for name, colour, chosen in (
            ("rejected", 5, [point for point in points if not point.kept]),
            ("kept", 2, [point for point in points if point.kept]),
        )
        if chosen
    ]
    total = sums.scores.number
    note = ""
    if len(points) < total:
        note = f"{len(points):,} rollouts, drawn at random from all that have a score."
    frame = Frame("scatter", "Score and length", "score", "tokens", note)
    return Picture(frame, f"{len(points):,} rollouts", at, tuple(shapes), _by_length(sums))


def _by_length(sums: Sums) -> Table:
    """The mean score of the points by their length, in fifths."""
    points = sorted(sums.points, key=lambda point: point.length)
    cuts = [len(points) * place // 5 for place in range(6)]
    rows = []
    for start, end in itertools.pairwise(cuts):
        if part := points[start:end]:
            mean = sum(point.score for point in part) / len(part)
            kept = sum(point.kept for point in part) / len(part)
            rows.append(
                (f"{part[0].length} to {part[-1].length}", f"{len(part)}", number(mean), f"{kept:.0%}")
            )
    return Table(("tokens", "rollouts", "mean score", "kept"), tuple(rows))
