"""How rows are cut into the batches of optimizer steps: as few as may be, as equal as can be.

A short last batch would be a whole optimizer step all the same, and with Adam a single row moves the weights
as far as a full batch does. So 65 rows with at most 64 to a batch are 33 and 32. No torch. Left out on
purpose: a batch's micro-batches (`policy/batches.py`), which change no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")


def next_batch_size(left: int, most: int) -> int:
    """Rows of the next batch where `left` are still to be cut into batches of at most `most`.

    Taking so many again and again makes `ceil(left / most)` batches whose sizes differ by at most one, the
    larger ones first.
    """
    return -(-left // -(-left // most)) if left else 0


def even_batches(rows: Sequence[Row], most: int) -> list[Sequence[Row]]:
    """Cut rows, in their order, into `ceil(len(rows) / most)` batches whose sizes differ by at most one."""
    batches, start = [], 0
    while start < len(rows):
        end = start + next_batch_size(len(rows) - start, most)
        batches.append(rows[start:end])
        start = end
    return batches


def is_few(rows: int, most: int) -> bool:
    """Whether an optimizer step on so many rows should be warned of: fewer than a tenth of a batch."""
    return 0 < 10 * rows < most
