"""Pictures: round ticks, thinning that says so, error bars, bars that are as high as what they count."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.report.axes import BOTTOM, LEFT, RIGHT, TOP, field_of
from rs_aligner.report.pictures import Curve, Frame, lines, number, spread, stacked, thinned, with_error

NUMBERS = st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-9)
FRAME = Frame("id", "Title", "score")


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_whatever_the_numbers_are_they_are_within_the_field_and_ticks_too(
    values: list[float], zero: bool
) -> None:
    at = field_of(values, values, zero=zero)
    for value in values:
        assert LEFT - 0.01 <= at.x.at(value) <= RIGHT + 0.01
        assert TOP - 0.01 <= at.y.at(value) <= BOTTOM + 0.01
    for tick in at.x_ticks:
        assert LEFT - 0.1 <= tick.place <= RIGHT + 0.1
    assert len(at.x_ticks) <= 8
    assert len({tick.label for tick in at.y_ticks}) >= 1 or not at.y_ticks


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((0.0, 1.0), ["0.0", "0.5", "1.0"]),
        ((0.31, 0.36), ["0.32", "0.34", "0.36"]),
        ((0.0, 1e-5), ["0", "5e-6", "1e-5"]),
        ((0.0, 3e6), ["0", "1M", "2M", "3M"]),
    ],
)
def test_ticks_are_round_numbers(ends: tuple[float, float], labels: list[str]) -> None:
    assert [tick.label for tick in field_of([0, 1], ends).y_ticks] == labels


def test_steps_have_whole_ticks() -> None:
    assert [tick.label for tick in field_of([0, 2], [0, 1], whole_x=True).x_ticks] == ["0", "1", "2"]


def test_a_long_curve_is_thinned_to_means_and_says_so() -> None:
    points = [(step, float(step % 2)) for step in range(1, 601)]
    assert [y for _, y in thinned(points)] == [0.5] * 300
    picture = lines(FRAME, [Curve("all", points)])
    assert picture is not None
    assert picture.frame.note == "Each point is the mean of 2 steps."
    assert len(picture.table.rows) == 12
    assert [picture.table.rows[0], picture.table.rows[-1]] == [("1", "1"), ("600", "0")]
    assert thinned(points[:300]) == points[:300]


def test_error_bars_are_two_standard_errors_on_either_side() -> None:
    picture = lines(FRAME, [Curve("held-out", [(0, 0.5), (4, 0.7)], [0.1, 0.05])])
    assert picture is not None
    tops = [float(one) for one in re.findall(r"M\S+ (\S+)V", picture.shapes[0].errors)]
    assert tops == pytest.approx([picture.field.y.at(0.7), picture.field.y.at(0.8)], abs=0.06)
    assert [row[1] for row in picture.table.rows] == ["0.50 ± 0.10", "0.700 ± 0.050"]


def test_stacked_bars_stand_on_each_other() -> None:
    picture = stacked(
        FRAME, [Curve("a", [(1, 2.0), (2, 1.0)]), Curve("b", [(1, 3.0)]), Curve("c", [(1, 0.0)])]
    )
    assert picture is not None
    assert [shape.name for shape in picture.shapes] == ["a", "b"]  # nothing of c
    [(low, high)] = re.findall(r"M\S+ (\S+)V(\S+)H", picture.shapes[1].path)
    at = picture.field.y.at
    assert (float(low), float(high)) == pytest.approx((at(2.0), at(5.0)), abs=0.06)
    assert "a 3, b 3" in picture.said


def test_a_gap_between_bars_is_a_gap() -> None:
    at = field_of([0, 10], [0, 1], zero=True)
    zero = f"{at.y.at(0):.1f}"
    assert at.outline([(0, 1, 1.0), (5, 6, 1.0)]).count(f"V{zero}") == 2
    assert at.outline([(0, 1, 1.0), (1, 2, 0.5)]).count(f"V{zero}") == 1


def test_nothing_leaves_no_picture() -> None:
    assert lines(FRAME, [Curve("a", [])]) is None
    assert stacked(FRAME, [Curve("a", [(1, 0.0)])]) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1234.0, "1,234"),
        (0.12345, "0.123"),
        (1234.56, "1,234.6"),
        (3e-4, "0.0003"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_for_people(value: float, said: str) -> None:
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.4547, 0.0201, "0.455 ± 0.020"),
        (12345.6, 234.0, "12,346 ± 234"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.5, 1e-5, "0.500000 ± 0.000010"),
    ],
)
def test_an_error_says_how_many_digits_count(value: float, error: float, said: str) -> None:
    assert with_error(value, error) == said


def test_some_of_many_rows_have_both_ends() -> None:
    rows, note = spread(list(range(100)), 5)
    assert list(rows) == [0, 25, 50, 74, 99]
    assert note.startswith("5 of 100 rows")
    assert spread([1, 2], 5) == ([1, 2], "")
