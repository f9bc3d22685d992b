"""How alike two responses are: by their text, by shared token n-grams, by edit distance.

Left out on purpose: embeddings, which would need a model, and a hash of n-grams: groups are small enough to
be compared pair by pair.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

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


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence of token ids into the other.

    Token ids only: `rapidfuzz` compares hashes, which of ids are the numbers themselves.
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a, b)


def edit_likeness(a: Sequence[int], b: Sequence[int]) -> float:
    """1 less the edit distance as a share of the longer sequence, from 0 to 1."""
    longer = max(len(a), len(b))
    # One division, so that 3 edits of 10 are 0.7 and not a little more or less.
    return (longer - edit_distance(a, b)) / longer if longer else 1.0


def edit_likeness_at_most(a: Counter[int], b: Counter[int]) -> float:
    """A quick bound of `edit_likeness` from how often each token is there: what both have stays at best."""
    longer = max(a.total(), b.total())
    return sum(min(times, b[token]) for token, times in a.items()) / longer if longer else 1.0
