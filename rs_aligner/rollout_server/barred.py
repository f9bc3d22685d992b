"""The ids of a model that its tokenizer lacks, as a server is told of them: once, when it is started.

A padded vocabulary has some hundreds among 150,000, and a request that names all others is a megabyte. So a
server knows them by a word, which a request that wants them barred has to show: who means other ids by it is
refused. Left out on purpose: the tokenizer, which both who starts a server and who asks it have, and how they
are barred (`inside/rs_aligner_barring.py`).
"""

from __future__ import annotations

import hashlib

import numpy as np

MOST_CHARACTERS = 100_000  # of a variable of the environment, in which Linux takes 131,072


def ranges_of(known: np.ndarray) -> str:
    """The ids that are missing, as `3,151665-151935`; empty where none is.

    Args:
        known: bool `[V]`, the ids that may come.
    """
    barred = np.flatnonzero(~known)
    if not len(barred):
        return ""
    ends = np.flatnonzero(np.diff(barred) != 1)
    firsts, lasts = barred[np.concatenate(([0], ends + 1))], barred[np.concatenate((ends, [-1]))]
    pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def word_of(known: np.ndarray) -> str | None:
    """The word by which a server knows the missing ids; None where none is missing."""
    ranges = ranges_of(known)
    return hashlib.sha256(ranges.encode()).hexdigest()[:16] if ranges else None


def variable_of(known: np.ndarray) -> str | None:
    """What a server is told: the word, and the ids behind it; None where it has nothing to bar, or too much.

    Who is not told bars nothing, and each request has to name the ids that may come.
    """
    ranges = ranges_of(known)
    return f"{word_of(known)} {ranges}" if 0 < len(ranges) <= MOST_CHARACTERS else None
