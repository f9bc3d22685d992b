"""How alike two responses are: by their text, by shared token n-grams, by edit distance.

Left out on purpose: embeddings, which would need a model, and a hash of n-grams: groups are small enough to
be compared pair by pair.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

NGrams = frozenset[tuple[int, ...]]


def normalised(text: str) -> str:
    """A text without what seldom makes a difference: Unicode's NFKC form, no case, white space as one space.

    Punctuation stays: `f(x) = x!` is not `f(x) = x`.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def ngrams(tokens: Sequence[int], n: int) -> NGrams:
    """The distinct runs of `n` tokens; of a shorter sequence, the whole of it."""
    if len(tokens) < n:
        return frozenset({tuple(tokens)})
    return frozenset(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def jaccard(a: NGrams, b: NGrams) -> float:
    """Share of the n-grams of either that both have, from 0 to 1; neither is empty."""
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other.

    Myers' bit-parallel algorithm (J. ACM 46, 1999) in Hyyrö's form for the whole distance (2001): a column of
    the table is two integers of `len(a)` bits, so a pair of 250 tokens takes a fraction of a millisecond.
    """
    if not a or not b:
        return len(a) + len(b)
    places: dict[Hashable, int] = {}
    for place, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    plus, minus, distance = every, 0, len(a)  # where the column rises and falls by one
    for token in b:
        same = places.get(token, 0)
        diagonal = (((same & plus) + plus) ^ plus) | same | minus
        rises = minus | (every & ~(diagonal | plus))
        falls = plus & diagonal
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = rises << 1 | 1, falls << 1
        plus = (falls | ~(diagonal | rises)) & every
        minus = rises & diagonal & every
    return distance


def edit_likeness(a: Sequence[int], b: Sequence[int], least: float = 0.0) -> float:
    """1 less the edit distance as a share of the longer sequence, from 0 to 1.

    Where it is surely below `least`, an upper bound is returned instead of the value: the share of tokens
    that both have, wherever they stand.
    """
    longer = max(len(a), len(b))
    if not longer:
        return 1.0
    bound = (Counter(a) & Counter(b)).total() / longer
    return bound if bound < least else 1 - edit_distance(a, b) / longer
