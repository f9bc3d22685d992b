"""Rows of data files, whatever their format (`formats.py`).

A row that cannot be used is an error that names its file and line, and what would work. Left out on purpose:
what becomes of a row (`reading.py`), and whose shape it has (`shapes.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rs_aligner.data.columns import is_turned, renamed
from rs_aligner.data.formats import values_in

_logger = logging.getLogger("rs_aligner")


def read_rows(
    files: Sequence[str], columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place; see `formats.values_in`. A text is a row with nothing but that.

    Args:
        files: of any format, and folders that `datasets` saved.
        columns: `model.data.columns`: what a row is to have under a name, by where it stands in the files.

    Raises:
        ValueError: a file cannot be read, or a row lacks what `columns` names.
    """
    for name in files:
        for where, value in values_in(name):
            row = {"text": value} if isinstance(value, str) else value
            if not isinstance(row, dict):
                raise ValueError(
                    f'{where}: should be an object such as {{"text": ...}}, not {type(row).__name__}'
                )
            if is_turned(row):
                raise ValueError(
                    f"{where}: is a whole table, a mapping for each column; write a row a line, with pandas: "
                    'to_json("rows.jsonl", orient="records", lines=True)'
                )
            yield where, renamed(where, row, columns) if columns else row


def numbered_rows(
    files: Sequence[str], columns: Mapping[str, str] | None = None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The same, with the number of its file before each row."""
    for number, name in enumerate(files):
        for where, row in read_rows([name], columns):
            yield number, where, row


def check_text(where: str, what: str, value: Any) -> str:
    """The value, if it is a text with something in it."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} should be a text, not {value!r}")
    if not value.strip():
        raise ValueError(f"{where}: {what} is empty")
    return value


def shown_keys(row: dict[str, Any]) -> str:
    """The row's keys, for a message."""
    return ", ".join(map(repr, row)) or "no keys"


def account(files: Sequence[str], what: str, num_kept: int, num_too_long: int, longest: int) -> None:
    """Says what was left out, and refuses to go on with nothing."""
    names = ", ".join(files) or "no files"
    if num_kept == 0:
        reason = f"all {num_too_long} are longer than {longest} tokens" if num_too_long else "no rows"
        raise ValueError(
            f"{names}: no {what} to use ({reason}); see model.data.seq_length, model.data.data_prefix"
        )
    if num_too_long:
        _logger.warning("%s: left out %d %s of more than %d tokens", names, num_too_long, what, longest)
