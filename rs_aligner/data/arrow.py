"""Rows of parquet and Arrow files, and of folders that `datasets` saved, as plain JSON values.

What JSON has no word for becomes a text (dates, decimals, bytes), since rows travel to judges and ledgers as
JSON. `pyarrow` is imported when such a file is read and not before. Left out on purpose: pictures and sounds.
"""

from __future__ import annotations

import base64
import datetime
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rs_aligner.data_folder import data_files, data_folder_problem

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_ROWS = 1024  # made Python's at once


def folder_rows(name: str) -> Iterator[tuple[str, Any]]:
    """Rows of a folder of `save_to_disk`, with their `folder:row`.

    Raises:
        ValueError: it is none, or holds several splits.
    """
    if (wrong := data_folder_problem(Path(name))) is not None:
        raise ValueError(f"{name}: {wrong}")
    batches = (batch for file in data_files(Path(name)) for batch in _batches(str(file), ARROW_STREAM))
    yield from _numbered(name, batches)


def arrow_rows(name: str, magic: bytes) -> Iterator[tuple[str, Any]]:
    """Rows of a parquet or Arrow file, with their `file:row`.

    Args:
        name: of the file.
        magic: what it begins with: `PARQUET`, `ARROW_FILE` or `ARROW_STREAM`.

    Raises:
        ValueError: it cannot be read.
    """
    yield from _numbered(name, _batches(name, magic))


def table_rows(table: Any) -> list[dict[str, Any]]:
    """Rows of a table in memory (`pyarrow.Table`)."""
    return [row for batch in table.to_batches(max_chunksize=_ROWS) for row in _plain_rows(batch)]


def _numbered(name: str, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    rows = (row for batch in batches for row in _plain_rows(batch))
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row


def _batches(name: str, magic: bytes) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    kind = "a parquet" if magic == PARQUET else "an Arrow"
    try:
        if magic == PARQUET:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(name) as file:
                yield from file.iter_batches(batch_size=_ROWS)
            return
        with pyarrow.memory_map(name) as source:
            if magic == ARROW_FILE:
                reader = pyarrow.ipc.open_file(source)
                yield from (reader.get_batch(place) for place in range(reader.num_record_batches))
            else:
                yield from pyarrow.ipc.open_stream(source)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{name}: not {kind} file that can be read ({error})") from None


def _plain_rows(batch: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.to_pylist()
    if all(_is_plain(field.type) for field in batch.schema):
        return rows
    return [plain(row) for row in rows]


def _is_plain(kind: Any) -> bool:
    """Whether all values of an Arrow type are JSON's."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    tells = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(tell(kind) for tell in tells)


def plain(value: Any) -> Any:
    """A value of a row as JSON has it: dates, decimals and bytes as texts, no number as nothing."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):  # a map
            return {str(key): plain(item) for key, item in value}
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, float) and value != value:  # no number, which JSON does not know
        return None
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return value
