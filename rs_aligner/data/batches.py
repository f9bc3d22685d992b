"""Rows to prompts, many at a time: a tokenizer takes a third of the time over a batch, and several cores.

What is read is the same, row for row, as one at a time. Left out on purpose: what a row's text is
(`reading.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from rs_aligner.data.reading import ReadPrompt, RowReader

_BATCH = 1024
T = TypeVar("T")


class Item(NamedTuple):
    """A row to be read.

    Attributes:
        where: its place.
        row: of its prompt.
        answers: to it, which are going to be read, too.
        rest: what whoever asks needs besides.
    """

    where: str
    row: dict[str, Any]
    answers: Sequence[str] = ()
    rest: Any = None


def read_batches(reader: RowReader, items: Iterable[Item], key: str) -> Iterator[tuple[Item, ReadPrompt]]:
    """The prompt of each row, as `reader.prompt`; what its answers need is tokenized with it.

    Args:
        reader: of the rows.
        items: the rows.
        key: under which a row has its prompt, unless it has `messages`.

    Raises:
        ValueError: a row is malformed; those before it have been yielded then.
    """
    drafted = ((item, reader.draft(item.where, item.row, key)) for item in items)
    for batch in _batches(drafted):
        prompts = [draft.text for _, draft in batch if not draft.plain]
        answered = [text for item, draft in batch for text in _answered(item, draft)]
        reader.tokenizer.prepare(prompts + answered)
        for item, draft in batch:
            yield item, reader.tokenized(item.where, draft)
    reader.tokenizer.prepare(())


def _answered(item: Item, draft: ReadPrompt) -> list[str]:
    """The prompt with each answer behind it, where that is how they are read."""
    if not item.answers or draft.plain or (draft.prefilled and not draft.goes_on):
        return []
    return [draft.text + answer for answer in item.answers]


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    """Items in lists; an error comes behind the items before it."""
    batch: list[T] = []
    while True:
        try:
            batch.append(next(items))
        except StopIteration:
            yield batch
            return
        except ValueError:
            yield batch
            raise
        if len(batch) == _BATCH:
            yield batch
            batch = []
