"""What is read of large files, into the columns of a store, of which `stored.py` makes it again.

Each item is written as it is read, and what a start needs of all of them is summed up on the way. Left out
on purpose: reading rows (`prompts.py`, `sft.py`, `pairs.py`), and files and locks (`store.py`).
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from rs_aligner import __version__
from rs_aligner.data.overlap import digests_of
from rs_aligner.data.store import Writer
from rs_aligner.data.stored import Stored
from rs_aligner.data_folder import data_files
from rs_aligner.files import checksums_of_files

FORMAT = 2
"""Of the columns and records; another one is another store."""
_DIGESTS = ("exact", "alike", "answered")
"""As `overlap.digests_of` has them."""
_KINDS = {
    "tokens": "<i4",  # of all sequences, one behind the other
    "token_ends": "<i8",  # where those of each end
    "rows": "u1",  # place in the file, and what there is besides tokens, of each item, as MessagePack
    "row_ends": "<i8",
    "files": "<u4",  # the number of its file
    **dict.fromkeys(_DIGESTS, "u1"),
}
_WRITTEN = 1024  # items that are written together
_pack = msgspec.msgpack.Encoder().encode
T = TypeVar("T")


def size_of(files: Sequence[str]) -> int:
    """Bytes of files, and of the files of folders; 0 where one of them is not there."""
    try:
        return sum(path.stat().st_size for path in _paths(files))
    except OSError:
        return 0  # whoever reads it says so


def key_of(files: Sequence[str], how: Any) -> str:
    """What a store of these files is called: by their names, what they hold, and how they are read."""
    sums = list(zip(map(str, _paths(files)), checksums_of_files(_paths(files)), strict=True))
    text = json.dumps([FORMAT, __version__, msgspec.__version__, list(files), sums, how])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _paths(files: Sequence[str]) -> list[Path]:
    paths = map(Path, files)
    return [part for path in paths for part in ([path] if not path.is_dir() else data_files(path))]


class Found(NamedTuple, Generic[T]):
    """An item as it was read.

    Attributes:
        item: a prompt, a row, a pair.
        where: its `file:line`.
        file: the number of its file.
        prompt: its text.
        answers: their texts.
    """

    item: T
    where: str
    file: int
    prompt: str
    answers: tuple[str, ...] = ()


def write_items(
    folder: Path,
    kind: type[Stored[T]],
    files: Sequence[str],
    found: Iterable[Found[T]],
    told: Callable[[int], dict[str, Any]],
) -> None:
    """Write items into an empty folder of a store.

    Args:
        folder: of the store.
        kind: of the items.
        files: by their names, of which an item has the number.
        found: the items in order.
        told: called with how many there were when all are read: what else to note, or why not to go on.
    """
    writer = Writer(folder, _KINDS)
    with contextlib.closing(writer):
        items = _Items(writer, kind, files)
        for one in found:
            items.add(one)
        items.flush()
        further = told(items.number)
        repeated = _repeated(writer.column("answered"))
        writer.finish({**further, **items.noted(), "files": list(files), "repeated": repeated})


class _Items(Generic[T]):
    """Items on their way into columns, many at a time.

    Attributes:
        number: of items.
    """

    def __init__(self, writer: Writer, kind: type[Stored[T]], files: Sequence[str]) -> None:
        self._writer, self._kind, self._names = writer, kind, files
        self._sums, self.number = kind.sums(), 0
        self._shortest, self._longest, self._learnt = 1 << 62, 0, 0
        self._num_tokens = self._num_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens, self._files = array("i"), array("I")
        self._token_ends, self._row_ends = array("q", [self._num_tokens]), array("q")
        self._rows: list[bytes] = []
        self._digests: list[tuple[bytes, bytes, bytes]] = []

    def add(self, found: Found[T]) -> None:
        """Take the next item in."""
        sequences, rest = self._kind.parts(found.item, found.where)
        for tokens in sequences:
            self._tokens.extend(tokens)
            self._num_tokens += len(tokens)
            self._token_ends.append(self._num_tokens)
        row = _packed(found.where, self._names[found.file], rest)
        self._rows.append(row)
        self._num_bytes += len(row)
        self._row_ends.append(self._num_bytes)
        self._files.append(found.file)
        self._digests.append(digests_of(found.prompt, *found.answers))
        self._sums.add(found.item)
        self.number += 1
        if len(self._rows) == _WRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if not self._rows:
            return
        lengths, learnt = self._kind.measured(np.diff(self._token_ends).reshape(-1, self._kind.sequences))
        self._shortest = min(self._shortest, int(lengths.min()))
        self._longest = max(self._longest, int(lengths.max()))
        self._learnt = max(self._learnt, int(learnt.max()))
        for name, numbers in (
            ("tokens", self._tokens),
            ("token_ends", self._token_ends[1:]),
            ("row_ends", self._row_ends),
            ("files", self._files),
        ):
            self._writer.add(name, numbers.tobytes())
        self._writer.add("rows", b"".join(self._rows))
        for name, digests in zip(_DIGESTS, zip(*self._digests, strict=True), strict=True):
            self._writer.add(name, b"".join(digests))
        self._begin()

    def noted(self) -> dict[str, Any]:
        """Of all items, what the store's record has."""
        return {"sums": self._sums.noted(), "spans": [self._shortest, self._longest, self._learnt]}


def _packed(where: str, file: str, rest: Any) -> bytes:
    """What there is of an item besides its tokens."""
    assert where.startswith(file)
    suffix = where[len(file) :]
    try:
        return _pack((suffix, rest))
    except OverflowError:  # whole numbers of more than 64 bits
        return _pack((suffix, json.dumps(rest)))


def _repeated(column: np.ndarray) -> list[Any]:
    """As `Origins.repeated`, by sorting: 40 MB for a million while it lasts."""
    halves = column.view("<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # of equal ones the first place comes first
    in_order = halves[order]
    is_again = np.concatenate(([False], (in_order[1:] == in_order[:-1]).all(axis=1)))
    if not is_again.any():
        return [0, [0, 0]]
    again = np.flatnonzero(is_again)
    first = again[np.argmin(order[again])]
    before = np.flatnonzero(~is_again[:first])[-1]
    return [len(again), [int(order[before]), int(order[first])]]
