"""Prompts that stand in training and in validation, and rows that stand in a set more than once.

A held-out figure says how a policy does on what it was not trained on, so a prompt of both is told, left out
of training, or refused, as `model.data.overlap` says; the held-out set stays as it is, so that the figures of
runs can be compared. Two prompts are the same once case, white space and Unicode's ways to compose a letter
are made alike. Punctuation stays: in mathematics a sign makes another question. What is compared is the text
as fed to the model, by digests in one pass: 11 s for a million prompts of 300 letters, 350 MB while it lasts,
and neither where they lie in a store. Left out on purpose: paraphrases, and prompts that contain others.
"""

from __future__ import annotations

import logging
import unicodedata
from array import array
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np

_logger = logging.getLogger("rs_aligner")
DIGEST_SIZE = 16
Overlap = Literal["warn", "drop", "refuse"]


class Places(Protocol):
    """Where the rows of a set stand, in order, with digests of their prompts; see `Origins`."""

    @property
    def where(self) -> Sequence[str]: ...

    @property
    def exact(self) -> Sequence[bytes]: ...

    @property
    def alike(self) -> Sequence[bytes]: ...

    @property
    def files(self) -> Sequence[int] | np.ndarray: ...

    def __len__(self) -> int: ...

    def those_in(self, digests: AbstractSet[bytes]) -> list[int]: ...

    def repeated(self) -> tuple[int, tuple[int, int]]: ...


class Origins:
    """Where the rows of a set stand, in order, with digests of their prompts.

    Attributes:
        where: `file:line` of each row, or its id.
        exact: a digest of each prompt as it is.
        alike: a digest of each prompt as `normalised`.
        rows: a digest of the prompt as `normalised` with its answers, if the row has any.
        files: the number of its file, of each row.
    """

    def __init__(self) -> None:
        self.where: list[str] = []
        self.exact: list[bytes] = []
        self.alike: list[bytes] = []
        self.rows: list[bytes] = []
        self.files = array("I")

    def __len__(self) -> int:
        return len(self.where)

    def add(self, where: str, prompt: str, *answers: str, file: int = 0) -> None:
        """Note the next row of the set."""
        self.files.append(file)
        exact, alike, row = digests_of(prompt, *answers)
        self.where.append(where)
        self.exact.append(exact)
        self.alike.append(alike)
        self.rows.append(row)

    def those_in(self, digests: AbstractSet[bytes]) -> list[int]:
        """Places whose prompt is `alike` one of these."""
        return [place for place, digest in enumerate(self.alike) if digest in digests]

    def repeated(self) -> tuple[int, tuple[int, int]]:
        """How many rows stand there already, and the first of them behind the one that it repeats."""
        seen: dict[bytes, int] = {}
        number, first = 0, (0, 0)
        for place, digest in enumerate(self.rows):
            before = seen.setdefault(digest, place)
            if before != place:
                number += 1
                first = first if number > 1 else (before, place)
        return number, first


def digests_of(prompt: str, *answers: str) -> tuple[bytes, bytes, bytes]:
    """Of a prompt as it is, as `normalised`, and so with its answers, if there are any."""
    text = normalised(prompt)
    alike = _digest(text)
    return _digest(prompt), alike, _digest("\0".join((text, *answers))) if answers else alike


def normalised(text: str) -> str:
    """The text with case, white space and composed letters made alike."""
    if text.isascii():  # the same, in half the time
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE).digest()


def tell_duplicates(files: Sequence[str], what: str, origins: Places) -> None:
    """Warn of rows that stand in a set more than once: prompts, or prompts with the same answers."""
    number, first = origins.repeated()
    if number:
        _logger.warning(
            "%s: %s of %s %s stand there already, but for case and white space (the first: %s and %s)",
            *(", ".join(files), f"{number:,}", f"{len(origins):,}", what),
            *(origins.where[place] for place in first),
        )


def held_apart(key: str, origins: Places, held_out: Places, overlap: Overlap) -> Sequence[int]:
    """Which rows to train on, once prompts that are held out have been looked for among them.

    Args:
        key: the setting that names their files.
        origins: of a training set's rows.
        held_out: of the validation prompts.
        overlap: what to do: `warn`, `drop` the rows, or `refuse`.

    Returns:
        The places of the rows that stay, in order.

    Raises:
        ValueError: there are such prompts, and they are refused, or nothing else is left.
    """
    places: dict[bytes, int] = {}
    for place, digest in enumerate(held_out.alike):
        places.setdefault(digest, place)
    shared = origins.those_in(places.keys())
    everything = range(len(origins))
    if not shared:
        return everything
    exact = set(held_out.exact)
    same = sum(origins.exact[place] in exact for place in shared)
    first = shared[0]
    found = (
        f"{key}: {len(shared):,} of {len(origins):,} rows have a validation prompt ({same:,} to the letter, "
        f"{len(shared) - same:,} but for case and white space; the first: {origins.where[first]} and "
        f"{held_out.where[places[origins.alike[first]]]})"
    )
    if overlap == "refuse":
        raise ValueError(f"{found}; take them out, or set model.data.overlap to drop or warn")
    if overlap == "warn":
        _logger.warning(
            "%s: held-out figures flatter; model.data.overlap=drop leaves them out of training", found
        )
        return everything
    if len(shared) == len(origins):
        raise ValueError(f"{found}, and model.data.overlap=drop leaves nothing to train on; use other files")
    _logger.warning("%s: left out of training, as model.data.overlap says", found)
    left_out = set(shared)
    return array("q", (place for place in everything if place not in left_out))
