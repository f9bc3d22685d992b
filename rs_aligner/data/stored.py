"""Prompts in a store: made when they are asked for, so that a rank holds those of its step and no others.

With the tokens and rows lie what a start needs of all prompts: digests that tell which stand in another set,
too, checksums, and what there was to tell of the rows. Left out on purpose: rows with answers, which
supervised training and reward models hold whole.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, overload

import msgspec
import numpy as np

from rs_aligner.data.overlap import DIGEST_SIZE
from rs_aligner.data.store import Store
from rs_aligner.data.sums import PromptSums
from rs_aligner.rollout import Prompt

_AT_ONCE = 1 << 16  # rows of a column that are looked at together
_unpack = msgspec.msgpack.Decoder().decode


class StoredPrompts(Sequence[Prompt]):
    """The prompts of a store, or some of them.

    Args:
        store: where they lie.
        places: of those that these are; None for all.
    """

    def __init__(self, store: Store, places: Sequence[int] | None = None) -> None:
        self._store = store
        self._places: Sequence[int] = range(len(store["token_ends"])) if places is None else places
        self._is_whole = places is None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...

    @overload
    def __getitem__(self, place: slice) -> StoredPrompts: ...

    def __getitem__(self, place: int | slice) -> Prompt | StoredPrompts:
        if isinstance(place, slice):
            return StoredPrompts(self._store, self._places[place])
        return self._prompt(self._places[place])

    def only(self, places: Sequence[int]) -> StoredPrompts:
        """Some of them, by their places among these."""
        return StoredPrompts(self._store, array("q", (self._places[place] for place in places)))

    def sums(self) -> tuple[str, int]:
        """As `sums_of`; noted in the store for all."""
        if self._is_whole:
            return self._store.record["fingerprint"], self._store.record["digest"]
        found = PromptSums.of(self)
        return found.fingerprint, found.digest

    def lengths(self) -> tuple[int, int]:
        """As `lengths_of`; noted in the store for all."""
        if self._is_whole:
            shortest, longest = self._store.record["lengths"]
            return shortest, longest
        sizes = np.diff(self._store["token_ends"], prepend=0)[np.asarray(self._places)]
        return int(sizes.min()), int(sizes.max())

    def _prompt(self, place: int) -> Prompt:
        begin, end = _span(self._store["token_ends"], place)
        token_ids = tuple(self._store["tokens"][begin:end].tolist())
        own_id, suffix, text, metadata = _row(self._store, place)
        if isinstance(metadata, str):
            metadata = json.loads(metadata)
        where = _file(self._store, place) + suffix
        return Prompt(
            where if own_id is None else own_id,
            metadata["text"] if text is None else text,
            token_ids,
            metadata=metadata,
            position=place,
        )


def _span(ends: np.ndarray, place: int) -> tuple[int, int]:
    return int(ends[place - 1]) if place else 0, int(ends[place])


def _row(store: Store, place: int) -> Any:
    begin, end = _span(store["row_ends"], place)
    return _unpack(store["rows"][begin:end].tobytes())


def _file(store: Store, place: int) -> str:
    return str(store.record["files"][store["files"][place]])


def sums_of(prompts: Sequence[Prompt]) -> tuple[str, int]:
    """Their fingerprint and their digest (`PromptSums`)."""
    if isinstance(prompts, StoredPrompts):
        return prompts.sums()
    found = PromptSums.of(prompts)
    return found.fingerprint, found.digest


def lengths_of(prompts: Sequence[Prompt]) -> tuple[int, int] | None:
    """Tokens of the shortest and of the longest; None where there are none."""
    if not prompts:
        return None
    if isinstance(prompts, StoredPrompts):
        return prompts.lengths()
    lengths = [len(prompt.token_ids) for prompt in prompts]
    return min(lengths), max(lengths)


class _Wheres(Sequence[str]):
    """Where the prompts stand."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store["files"])

    def __getitem__(self, place: Any) -> Any:
        return _file(self._store, place) + _row(self._store, place)[1]


class _Digests(Sequence[bytes]):
    """A column of digests."""

    def __init__(self, column: np.ndarray) -> None:
        self._column = column.reshape(-1, DIGEST_SIZE)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        return self._column[place].tobytes()


class StoredOrigins:
    """Where the prompts of a store stand: what `overlap.Origins` has, without holding it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.where: Sequence[str] = _Wheres(store)
        self.exact: Sequence[bytes] = _Digests(store["exact"])
        self.alike: Sequence[bytes] = _Digests(store["alike"])
        self.files: np.ndarray = store["files"]

    def __len__(self) -> int:
        return len(self.files)

    def those_in(self, digests: AbstractSet[bytes]) -> list[int]:
        """Places whose prompt is `alike` one of these."""
        column = self._store["alike"].reshape(-1, DIGEST_SIZE)
        begins = np.unique(np.frombuffer(b"".join(digest[:8] for digest in digests), "<u8"))
        found: list[int] = []
        for first in range(0, len(column), _AT_ONCE):
            heads = np.ascontiguousarray(column[first : first + _AT_ONCE, :8]).view("<u8").ravel()
            likely = first + np.flatnonzero(np.isin(heads, begins))
            found += (int(place) for place in likely if column[place].tobytes() in digests)
        return found

    def repeated(self) -> tuple[int, tuple[int, int]]:
        """How many rows stand there already, and the first of them behind the one that it repeats."""
        number, (before, place) = self._store.record["repeated"]
        return number, (before, place)
