"""Rows of data files: JSON Lines, or parquet where the name ends so.

A row that cannot be used is an error that names its file and line, and what would work. Left out on purpose:
what becomes of a row (`reading.py`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

_logger = logging.getLogger("rs_aligner")


def read_rows(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its `file:line`, of parquet its `file:row`. Empty lines are skipped, but counted."""
    for name in files:
        if name.endswith(".parquet"):
            yield from _parquet_rows(name)
            continue
        with open(name, "rb") as file:
            # As bytes, so that only a line break ends a line, and a decoding error knows its line.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{name}:{number}"
                    yield where, _parse(where, line)


def _parquet_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{name}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name}: not a parquet file ({error})") from None


def _parse(where: str, line: bytes) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        row = json.loads(line.decode("utf-8"), parse_constant=refuse_constant)
        # A lone surrogate, \ud800, passes as JSON but is no text: neither tokenizer nor judge takes it.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{where}: not valid UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f'{where}: should be an object such as {{"text": ...}}, not {type(row).__name__}')
    return row


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
