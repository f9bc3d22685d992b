"""Prompts, rows and pairs in a store: made when they are asked for, so that a rank holds those of its step.

With the tokens lie what a start needs of all of them: checksums, lengths, digests that tell which stand in
another set, too. Left out on purpose: how they come there (`storing.py`), and whether (`kept.py`).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, overload

import msgspec
import numpy as np

from rs_aligner.data.overlap import DIGEST_SIZE
from rs_aligner.data.store import Store
from rs_aligner.data.sums import PairSums, PromptSums, RowSums, Sums
from rs_aligner.rollout import PreferencePair, Prompt, TrainingRow

_AT_ONCE = 1 << 16  # rows of a column that are looked at together
_unpack = msgspec.msgpack.Decoder().decode
T = TypeVar("T")
Tokens = tuple[int, ...]


class Spans(NamedTuple):
    """Tokens of the shortest and of the longest item, and the most of one that are learnt."""

    shortest: int
    longest: int
    learnt: int


class Stored(Sequence[T]):
    """What is in a store, or some of it; a kind of items says how one is taken apart and put together.

    Args:
        store: where they lie.
        places: of those that these are; None for all.
    """

    sequences: ClassVar[int]
    """How many sequences of tokens an item has."""
    sums: ClassVar[type[Sums[Any]]]

    def __init__(self, store: Store, places: Sequence[int] | None = None) -> None:
        self._store = store
        self._places: Sequence[int] = range(len(store["files"])) if places is None else places
        self._is_whole = places is None

    @staticmethod
    def parts(item: Any, where: str) -> tuple[tuple[Tokens, ...], Any]:
        """An item's tokens, and what there is of it besides: plain values."""
        raise NotImplementedError

    def _item(self, place: int, tokens: list[Tokens], rest: Any, where: str) -> T:
        """The item again."""
        raise NotImplementedError

    @staticmethod
    def measured(sizes_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of items, and those that are learnt: both `[N]`, from those of their sequences."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> Self: ...

    def __getitem__(self, place: int | slice) -> T | Self:
        if isinstance(place, slice):
            return type(self)(self._store, self._places[place])
        place = self._places[place]
        ends, first = self._store["token_ends"], place * self.sequences
        spans = [_span(ends, number) for number in range(first, first + self.sequences)]
        tokens = [tuple(self._store["tokens"][begin:end].tolist()) for begin, end in spans]
        suffix, rest = _row(self._store, place)
        if isinstance(rest, str):  # whole numbers of more than 64 bits are in it
            rest = json.loads(rest)
        return self._item(place, tokens, rest, _file(self._store, place) + suffix)

    def only(self, places: Sequence[int]) -> Self:
        """Some of them, by their places among these."""
        return type(self)(self._store, array("q", (self._places[place] for place in places)))

    def noted(self) -> dict[str, Any]:
        """Their checksums, as `Sums.noted`; of all they are in the store."""
        found: dict[str, Any] = self._store.record["sums"] if self._is_whole else self.sums.of(self).noted()
        return found

    def spans(self) -> Spans:
        """Their lengths; of all they are in the store."""
        if self._is_whole:
            return Spans(*self._store.record["spans"])
        sizes = np.diff(self._store["token_ends"], prepend=0).reshape(-1, self.sequences)
        lengths, learnt = self.measured(sizes[np.asarray(self._places)])
        return Spans(int(lengths.min()), int(lengths.max()), int(learnt.max()))


class StoredPrompts(Stored[Prompt]):
    """Prompts; `position` is the place in the set."""

    sequences, sums = 1, PromptSums

    @staticmethod
    def parts(item: Prompt, where: str) -> tuple[tuple[Tokens, ...], Any]:
        """Nothing of it twice."""
        own_id = None if item.id == where else item.id
        text = None if item.metadata.get("text") == item.text else item.text
        return (item.token_ids,), (own_id, text, item.metadata)

    def _item(self, place: int, tokens: list[Tokens], rest: Any, where: str) -> Prompt:
        own_id, text, metadata = rest
        text = metadata["text"] if text is None else text
        own_id = where if own_id is None else own_id
        return Prompt(own_id, text, tokens[0], metadata=metadata, position=place)

    @staticmethod
    def measured(sizes_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nothing of a prompt is learnt."""
        return sizes_NK[:, 0], np.zeros(len(sizes_NK), np.int64)


class StoredRows(Stored[TrainingRow]):
    """Prompts with the responses to learn."""

    sequences, sums = 2, RowSums

    @staticmethod
    def parts(item: TrainingRow, where: str) -> tuple[tuple[Tokens, ...], Any]:
        """It has no more than its tokens, as it is read."""
        assert item == TrainingRow(item.prompt, item.response)
        return (item.prompt, item.response), None

    def _item(self, place: int, tokens: list[Tokens], rest: Any, where: str) -> TrainingRow:
        return TrainingRow(tokens[0], tokens[1])

    @staticmethod
    def measured(sizes_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The response is learnt."""
        return sizes_NK.sum(axis=1), sizes_NK[:, 1]


class StoredPairs(Stored[PreferencePair]):
    """Two answers to a prompt."""

    sequences, sums = 2, PairSums

    @staticmethod
    def parts(item: PreferencePair, where: str) -> tuple[tuple[Tokens, ...], Any]:
        """It has no more than its tokens."""
        return (item.chosen, item.rejected), None

    def _item(self, place: int, tokens: list[Tokens], rest: Any, where: str) -> PreferencePair:
        return PreferencePair(tokens[0], tokens[1])

    @staticmethod
    def measured(sizes_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The longer answer counts, and a score is learnt."""
        return sizes_NK.max(axis=1), np.ones(len(sizes_NK), np.int64)


def _span(ends: np.ndarray, place: int) -> tuple[int, int]:
    return int(ends[place - 1]) if place else 0, int(ends[place])


def _row(store: Store, place: int) -> Any:
    begin, end = _span(store["row_ends"], place)
    return _unpack(store["rows"][begin:end].tobytes())


def _file(store: Store, place: int) -> str:
    return str(store.record["files"][store["files"][place]])


def sums_of(kind: type[Sums[T]], items: Sequence[T]) -> dict[str, Any]:
    """Checksums of items, as `Sums.noted`."""
    return items.noted() if isinstance(items, Stored) else kind.of(items).noted()


def spans_of(items: Sequence[Prompt] | Sequence[TrainingRow] | Sequence[PreferencePair]) -> Spans | None:
    """Their lengths; None where there are none."""
    if not items:
        return None
    if isinstance(items, Stored):
        return items.spans()
    lengths = [len(item.token_ids) if isinstance(item, Prompt) else len(item) for item in items]
    learnt = [
        len(item.response) if isinstance(item, TrainingRow) else int(isinstance(item, PreferencePair))
        for item in items
    ]
    return Spans(min(lengths), max(lengths), max(learnt))


def only(items: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The items at some places, in their order; themselves where these are all."""
    if len(places) == len(items):
        return items
    return items.only(places) if isinstance(items, Stored) else tuple(items[place] for place in places)


class _Wheres(Sequence[str]):
    """Where the items stand."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store["files"])

    def __getitem__(self, place: Any) -> Any:
        return _file(self._store, place) + _row(self._store, place)[0]


class _Digests(Sequence[bytes]):
    """A column of digests."""

    def __init__(self, column: np.ndarray) -> None:
        self._column = column.reshape(-1, DIGEST_SIZE)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        return self._column[place].tobytes()


class StoredOrigins:
    """Where the items of a store stand: what `overlap.Origins` has, without holding it."""

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
