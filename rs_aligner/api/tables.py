"""Tables of other libraries as rows: `datasets.Dataset`, pandas' and polars' data frames, Arrow's tables.

Known by what they can do, so that none of the libraries is imported that the caller has not. They pass
through Arrow, as parquet files do, so a table and its file are read alike. Left out on purpose:
columns of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rs_aligner.data.arrow import plain, table_rows


def rows_of_table(argument: str, given: Any) -> list[dict[str, Any]] | None:
    """The rows of a table; None where it is none, such as a list.

    Args:
        argument: by which it came, for messages.
        given: what it may be.

    Raises:
        ValueError: it is several tables, or one whose rows cannot be told.
    """
    if isinstance(given, Mapping) and all(hasattr(one, "with_format") for one in given.values()) and given:
        names = ", ".join(map(repr, given))
        raise ValueError(
            f"{argument} is a {type(given).__name__} with the splits {names}: give one, {argument}="
            f"...[{next(iter(given))!r}]"
        )
    if hasattr(given, "with_format") and hasattr(given, "column_names"):  # datasets
        if not hasattr(given, "__len__"):  # a stream
            return [plain(dict(row)) for row in given]
        return table_rows(given.with_format("arrow")[:])
    if hasattr(given, "to_batches") and hasattr(given, "to_pylist"):  # pyarrow
        return table_rows(given)
    if hasattr(given, "to_arrow") and hasattr(given, "columns"):  # polars
        return table_rows(given.to_arrow())
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return _of_pandas(given)
    return None


def _of_pandas(frame: Any) -> list[dict[str, Any]]:
    import pyarrow

    try:
        return table_rows(pyarrow.Table.from_pandas(frame, preserve_index=False))
    except pyarrow.ArrowException:  # values of several types in a column, which rows may have
        return [plain(row) for row in frame.to_dict("records")]
