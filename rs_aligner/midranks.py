"""Ranks of numbers with ties, for what has to hold whatever the scale.

Plain. Left out on purpose: ranks of what cannot be compared, such as NaN; a score is finite.
"""

from __future__ import annotations

from collections.abc import Sequence


def midranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1 for the lowest; equal values share the mean of theirs.

    Their sum is n (n + 1) / 2 whatever ties there are.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for place in order[first : last + 1]:
            found[place] = (first + last) / 2 + 1
        first = last + 1
    return found
