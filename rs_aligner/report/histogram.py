"""Counts of values in bins, in constant memory and without knowing the values before.

As long as there are few different values, such as scores of 0 and 1, each has its own count. Then come bins
whose
width is a power of two: where a value lies too far out, neighbours are joined, so that every count stays
exact.
Left out on purpose: drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

MOST_VALUES = 24  # different ones that are counted each by itself
MOST_BINS = 64
_FEW_VALUES = 12  # that are shown each by itself; more only where all are whole numbers


class Bar(msgspec.Struct, frozen=True):
    """How many values lie from `low` to below `high`; equal for a value that is counted by itself."""

    low: float
    high: float
    count: int


class Histogram(msgspec.Struct):
    """Counts of finite values.

    Attributes:
        values: each different value with its count; empty once there are bins.
        exponent: bins are 2^exponent wide; None while values are counted by themselves.
        bins: bin k, from k 2^exponent to below (k + 1) 2^exponent, with its count.
        number, total: of all values, and their sum.
    """

    values: dict[float, int] = msgspec.field(default_factory=dict)
    exponent: int | None = None
    bins: dict[int, int] = msgspec.field(default_factory=dict)
    number: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """Of all values; None without any."""
        return self.total / self.number if self.number else None

    def add(self, value: float) -> None:
        """Count a value."""
        self.number += 1
        self.total += value
        if self.exponent is None:
            self.values[value] = self.values.get(value, 0) + 1
            if len(self.values) > MOST_VALUES:
                self._into_bins()
        else:
            place = math.floor(math.ldexp(value, -self.exponent))
            self.bins[place] = self.bins.get(place, 0) + 1
            if len(self.bins) > 1 and self.bins[place] == 1:
                self._join()

    def bars(self, exponent: int | None) -> Iterator[Bar]:
        """The counts, in order.

        Args:
            exponent: of the bins' width, at least `self.exponent`; None for values by themselves.
        """
        if exponent is None:
            yield from (Bar(value, value, count) for value, count in sorted(self.values.items()))
            return
        joined: dict[int, int] = {}
        for place, count in self._places(exponent):
            joined[place] = joined.get(place, 0) + count
        width = math.ldexp(1.0, exponent)
        for place in range(min(joined, default=0), max(joined, default=-1) + 1):
            yield Bar(place * width, (place + 1) * width, joined.get(place, 0))

    def _places(self, exponent: int) -> Iterator[tuple[int, int]]:
        if self.exponent is None:
            yield from ((math.floor(math.ldexp(v, -exponent)), count) for v, count in self.values.items())
        else:
            yield from ((place >> (exponent - self.exponent), count) for place, count in self.bins.items())

    def _into_bins(self) -> None:
        low, high = min(self.values), max(self.values)
        exponent = math.ceil(math.log2((high - low) / (MOST_BINS / 2)))
        for place, count in self._places(exponent):
            self.bins[place] = self.bins.get(place, 0) + count
        self.exponent, self.values = exponent, {}
        self._join()

    def _join(self) -> None:
        """Join neighbours until there are no more bins, with those between them, than there may be."""
        assert self.exponent is not None
        while max(self.bins) - min(self.bins) >= MOST_BINS:
            wider: dict[int, int] = {}
            for place, count in self.bins.items():
                wider[place >> 1] = wider.get(place >> 1, 0) + count
            self.exponent, self.bins = self.exponent + 1, wider


def common_exponent(*histograms: Histogram) -> int | None:
    """The width of bins in which all of them can be shown; None where all have few values."""
    exponents = [one.exponent for one in histograms if one.exponent is not None]
    if exponents:
        return max(exponents)
    everything = {value for one in histograms for value in one.values}
    if len(everything) <= (MOST_VALUES if all(value == int(value) for value in everything) else _FEW_VALUES):
        return None
    return math.ceil(math.log2((max(everything) - min(everything)) / (MOST_BINS / 2)))
