"""What is read of files, kept: by each rank in its memory, or of large files by a node for all of its ranks.

Whichever it is, the items are the same, and so is what there is to tell of the rows, at each start. Left out
on purpose: what an item is (`prompts.py`, `sft.py`, `pairs.py`).
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from rs_aligner.data.overlap import Origins, Places
from rs_aligner.data.reading import ReadingTokenizer, RowReader
from rs_aligner.data.store import opened
from rs_aligner.data.stored import Stored, StoredOrigins
from rs_aligner.data.storing import Found, key_of, size_of, write_items

LARGE = 16 << 20
"""Bytes of files from which on what is read of them is kept in a store of the node (`store.py`)."""
_COLLECTED = 100_000  # objects that there are to be more before cycles are looked for
_logger = logging.getLogger("rs_aligner")
T = TypeVar("T")


class How(NamedTuple):
    """How rows are read.

    Attributes:
        tokenizer: turns texts into tokens.
        template: a format string over a row's keys for the prompt; None for what a row has.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_length: most tokens of an item.
        max_prompt_length: most tokens of its prompt; None for no such limit.
    """

    tokenizer: ReadingTokenizer
    template: str | None
    add_bos: bool | None
    columns: Mapping[str, str]
    max_length: int
    max_prompt_length: int | None = None


class Reading(Generic[T]):
    """The rows of files on their way to items.

    Attributes:
        files: of any format (`formats.py`).
        how: they are read.
        reader: of the rows.
        left_out: how many rows were, by the reason.
    """

    kind: ClassVar[type[Stored[Any]]]
    what: ClassVar[str]
    """What the items are called."""

    def __init__(self, files: Sequence[str], how: How) -> None:
        self.files, self.how = files, how
        self.reader = RowReader(how.tokenizer, how.template, how.add_bos)
        self.left_out = Counter[str]()

    def found(self) -> Iterator[Found[T]]:
        """The items, in order; what is left out is counted.

        Raises:
            ValueError: a row is malformed, with file and line.
        """
        raise NotImplementedError

    def account(self, number: int) -> None:
        """Say what was left out beside so many items.

        Raises:
            ValueError: there are none.
        """
        raise NotImplementedError


class Kept(NamedTuple, Generic[T]):
    """What was read.

    Attributes:
        items: in file order.
        left_out: how many rows were left out, by the reason.
        origins: where each of `items` stands.
    """

    items: Sequence[T]
    left_out: Counter[str]
    origins: Places


def kept(begin: Callable[[Sequence[str], How], Reading[T]], files: Sequence[str], how: How) -> Kept[T]:
    """Read files, or take up what was read of them.

    Args:
        begin: makes a reading.
        files: of any format, and folders that `datasets` saved.
        how: they are read.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    with _few_collections():
        return _kept(begin, files, how)


def _kept(begin: Callable[[Sequence[str], How], Reading[T]], files: Sequence[str], how: How) -> Kept[T]:
    reading = begin(files, how)  # says what cannot be, and reads nothing
    if size_of(files) >= LARGE and how.tokenizer.fingerprint is not None:
        try:
            return _of_node(reading)
        except OSError as error:
            _logger.warning("data: %s are kept in memory, by each rank: %s", reading.what, error)
            reading = begin(files, how)
    items: list[T] = []
    origins = Origins()
    for item, where, file, prompt, answers in reading.found():
        origins.add(where, prompt, *answers, file=file)
        items.append(item)
    reading.reader.tell()
    reading.account(len(items))
    return Kept(tuple(items), reading.left_out, origins)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Rows have no cycles; to look for some at each 700 objects takes a sixth of the time of reading."""
    before = gc.get_threshold()
    if before[0]:  # else there are no collections
        gc.set_threshold(max(before[0], _COLLECTED), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _of_node(reading: Reading[T]) -> Kept[T]:
    """The items in a store, which is made where there is none.

    Raises:
        OSError: they cannot be kept.
        ValueError: as `kept`.
    """
    how = reading.how
    told: list[Any] = [
        reading.what,
        how.tokenizer.fingerprint,
        how.template,
        how.add_bos,
        sorted(how.columns.items()),
    ]
    told += [how.max_length, how.max_prompt_length]
    key = key_of(reading.files, told)

    def make(folder: Path) -> None:
        write_items(folder, reading.kind, reading.files, reading.found(), noted)

    def noted(number: int) -> dict[str, Any]:
        if key_of(reading.files, told) != key:
            raise OSError("the files changed while they were read")
        notes = reading.reader.notes()
        reading.reader.tell()
        reading.account(number)
        return {"notes": notes, "left_out": dict(reading.left_out)}

    store, is_new = opened(key, make)
    items: Stored[T] = reading.kind(store)
    when = "read once for all ranks of this node" if is_new else "read before"
    size = store.size / (1 << 20)
    _logger.info("data: %s %s, %s: %s (%.0f MiB)", f"{len(items):,}", reading.what, when, store.folder, size)
    if not is_new:
        reading.left_out.update(store.record["left_out"])
        reading.reader.recall(store.record["notes"])
        reading.reader.tell()
        reading.account(len(items))
    return Kept(items, reading.left_out, StoredOrigins(store))
