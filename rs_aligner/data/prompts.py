"""Prompt files: `{"text": ...}`, a chat `{"messages": [...]}`, or any row with a template over its keys.

What other programs call a text or a chat is one, too (`shapes.py`). The whole row travels on as metadata, for
the judge, with what the chat template begins the answer with, if anything, under the key `prefilled`. A
prompt that is too long is counted and left out, never cut and never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.overlap import Origins, Places
from rs_aligner.data.reading import ReadingTokenizer, RowReader
from rs_aligner.data.rows import account, numbered_rows
from rs_aligner.data.shapes import as_prompt
from rs_aligner.data.store import opened
from rs_aligner.data.stored import StoredOrigins, StoredPrompts
from rs_aligner.data.storing import Found, key_of, size_of, write_prompts
from rs_aligner.rollout import Prompt

_logger = logging.getLogger("rs_aligner")

LARGE = 16 << 20
"""Bytes of files from which on prompts are kept in a store of the node (`store.py`), and not by each rank."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of some files, in file order.

    Attributes:
        prompts: those that can be used.
        num_too_long: how many were left out because they are too long.
        origins: where each of `prompts` stands.
    """

    prompts: Sequence[Prompt]
    num_too_long: int
    origins: Places = field(default_factory=Origins, compare=False)

    def only(self, places: Sequence[int]) -> Sequence[Prompt]:
        """Those at some places, in their order."""
        if len(places) == len(self.prompts):
            return self.prompts
        if isinstance(self.prompts, StoredPrompts):
            return self.prompts.only(places)
        return tuple(self.prompts[place] for place in places)


def load_prompts(
    files: Sequence[str],
    tokenizer: ReadingTokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    max_prompt_length: int,
) -> PromptSet:
    """Reads prompt files.

    Args:
        files: of any format (`formats.py`).
        tokenizer: turns texts into tokens.
        template: a format string over a row's keys (`model.data.prompt_template`); None for rows that
            have `text` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_prompt_length: prompts of more tokens than this are left out.

    Returns:
        The prompts; `Prompt.position` is the place in file order until an order gives another.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    reading = _Reading(files, RowReader(tokenizer, template, add_bos), columns or {}, max_prompt_length)
    how = [template, add_bos, sorted((columns or {}).items()), max_prompt_length]
    if size_of(files) >= LARGE and tokenizer.fingerprint is not None:
        try:
            return _stored(reading, [*how, tokenizer.fingerprint])
        except OSError as error:
            _logger.warning("data: prompts are kept in memory, by each rank: %s", error)
            reading = _Reading(
                files, RowReader(tokenizer, template, add_bos), columns or {}, max_prompt_length
            )
    prompts, origins = [], Origins()
    for prompt, where, file in reading.prompts():
        origins.add(where, prompt.text, file=file)
        prompts.append(prompt)
    reading.reader.tell()
    reading.account(len(prompts))
    return PromptSet(tuple(prompts), reading.num_too_long, origins)


def _stored(reading: _Reading, how: Any) -> PromptSet:
    """The prompts in a store, which is made where there is none.

    Raises:
        OSError: they cannot be kept.
        ValueError: as `load_prompts`.
    """
    key = key_of(reading.files, how)

    def make(folder: Path) -> None:
        write_prompts(folder, reading.files, reading.prompts(), told)

    def told(number: int) -> dict[str, Any]:
        if key_of(reading.files, how) != key:
            raise OSError("the files changed while they were read")
        notes = reading.reader.notes()
        reading.reader.tell()
        reading.account(number)
        return {"notes": notes, "num_too_long": reading.num_too_long}

    store, is_new = opened(key, make)
    prompts = StoredPrompts(store)
    when = "read once for all ranks of this node" if is_new else "read before"
    size = store.size / (1 << 20)
    _logger.info("data: %s prompts, %s: %s (%.0f MiB)", f"{len(prompts):,}", when, store.folder, size)
    if not is_new:
        reading.num_too_long = store.record["num_too_long"]
        reading.reader.recall(store.record["notes"])
        reading.reader.tell()
        reading.account(len(prompts))
    return PromptSet(prompts, reading.num_too_long, StoredOrigins(store))


class _Reading:
    """The rows of files as prompts, and a count of those that are too long."""

    def __init__(
        self, files: Sequence[str], reader: RowReader, columns: Mapping[str, str], longest: int
    ) -> None:
        self.files, self.reader, self.num_too_long = files, reader, 0
        self._columns, self._longest = columns, longest

    def prompts(self) -> Iterator[Found]:
        """Those that are not too long, in order."""
        reader, position = self.reader, 0
        items = (
            Item(where, row if reader.has_template else as_prompt(where, row), rest=file)
            for file, where, row in numbered_rows(self.files, self._columns)
        )
        for (where, row, _, file), read in read_batches(reader, items, "text"):
            if len(read.token_ids) > self._longest:
                self.num_too_long += 1
                continue
            told = reader.metadata(where, row, read)
            yield Found(
                Prompt(row_id(where, row), read.text, read.token_ids, metadata=told, position=position),
                where,
                file,
            )
            position += 1

    def account(self, number: int) -> None:
        """Say what was left out; see `rows.account`."""
        account(self.files, "prompts", number, self.num_too_long, self._longest)


def row_id(where: str, row: dict[str, Any]) -> str:
    """The row's own id, or its file and line.

    Raises:
        ValueError: the id is neither a text nor a whole number.
    """
    value = row.get("id")
    if value is None:
        return where
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f"{where}: id should be a text or a whole number, not {value!r}")
    return str(value)
