"""Files that are drawn from by weight: the share of an epoch that each has, and how they take turns.

An epoch stays as long as its files have rows together. A file with a larger share than its rows make comes
more than once in it, one with a smaller share not whole; each goes on in its own order where the epoch before
left off. Left out on purpose: weights that change while a run goes on.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SLACK = 1e-9  # of sums of shares


@dataclass(frozen=True)
class Share:
    """A file's part of what is drawn.

    Attributes:
        file: as it was named.
        share: of each epoch, above 0; those of all files add up to 1.
        rows: that there are of it, one after the other in the set.
    """

    file: str
    share: float
    rows: int


def shares_of(key: str, files: Sequence[str], weights: Sequence[float], rows: Sequence[int]) -> list[Share]:
    """The shares of files; none where they have no weights.

    Args:
        key: that names them, for messages.
        files: in order.
        weights: of the files, whatever they add up to; none for files that count by their rows.
        rows: that can be used of each.

    Raises:
        ValueError: a file has no row, or its share would be none.
    """
    if not weights:
        return []
    whole, number = sum(weights), sum(rows)
    for file, weight, some in zip(files, weights, rows, strict=True):
        if not some:
            raise ValueError(f"{key}: {file} has a weight and no row that can be used; drop both")
        if weight / whole * number < 1:
            raise ValueError(
                f"{key}: {file} has {weight / whole:.2g} of an epoch of {number:,} rows, which is less than "
                "one of them; raise its weight, or drop both"
            )
    parts = zip(files, weights, rows, strict=True)
    return [Share(file, weight / whole, some) for file, weight, some in parts]


def names(shares: Sequence[Share]) -> list[str]:
    """What figures call the files: their names, or where these are not enough the whole path."""
    short = [Path(share.file).name for share in shares]
    return short if len(set(short)) == len(short) else [share.file for share in shares]


def lines(shares: Sequence[Share]) -> list[tuple[str, str]]:
    """What a plan says of them."""
    number = sum(share.rows for share in shares)
    told = [
        f"{share.share:.3g} of an epoch is {share.file}: each of its {share.rows:,} rows "
        f"{share.share * number / share.rows:.3g} times"
        for share in shares
    ]
    return [("" if place else "shares", line) for place, line in enumerate(told)]


def turns(shares: Sequence[Share], number: int) -> np.ndarray:
    """Whose turn it is at each place of an epoch: the files' numbers, `[number]`.

    Up to any place each file had its share but for less than a row: of those that may have a turn, the one
    that has to have it soonest (R. Tijdeman, The chairman assignment problem, 1980).
    """
    if len(shares) == 1:
        return np.zeros(number, np.uint16)
    found = array("H", bytes(2 * number))
    least = 1 / (2 * len(shares) - 2)
    parts = [share.share for share in shares]
    owed = [0.0] * len(shares)
    had = [0] * len(shares)
    for place in range(number):
        chosen, soonest = -1, 0.0
        for file, part in enumerate(parts):
            owed[file] = part * (place + 1) - had[file]
            if owed[file] >= least - _SLACK:
                due = (1 - least - owed[file]) / part
                if chosen < 0 or due < soonest:
                    chosen, soonest = file, due
        assert chosen >= 0  # what is owed adds up to 1
        found[place] = chosen
        had[chosen] += 1
    return np.frombuffer(found, np.uint16)


def shuffled(number: int, seed: str) -> array[int]:
    """The numbers below `number` in an order of their own.

    Seeded by text: Python hashes it with SHA-512, so neighbouring seeds give unrelated orders.
    """
    order = array("q", range(number))
    random.Random(seed).shuffle(order)  # it swaps places, and asks for no more
    return order


def stream(share: Share, seed: str, begin: int, number: int, *, shuffle: bool) -> np.ndarray:
    """What comes of a file behind its first `begin` draws: `number` places in it.

    Every row comes once before one comes again.
    """
    pieces: list[np.ndarray] = []
    place = begin
    while place < begin + number:
        cycle, inside = divmod(place, share.rows)
        order = shuffled(share.rows, f"{seed} {cycle}") if shuffle else array("q", range(share.rows))
        pieces.append(np.frombuffer(order, np.int64)[inside : inside + begin + number - place])
        place += len(pieces[-1])
    return np.concatenate(pieces)
