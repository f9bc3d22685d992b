"""A row of the ledger as a line of a file: one plain JSON object.

The last field is a checksum of all that stands before it, so a flipped bit is noticed wherever it is; every
row also says how many its file has, so missing lines are. Left out on purpose: forgers, who can write a
checksum as well.
"""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import replace
from typing import TypeVar

import msgspec

from rs_aligner.files import checksum
from rs_aligner.record.ledger_row import KeptRow, LedgerRow

AnyRow = TypeVar("AnyRow")

KEPT_MARK = b'"kept":true'
"""In the line of every row that is kept, and in hardly any other: within a text, quotes are escaped."""

_END = b'"}'  # of a line: the checksum's closing quote, and the object's end
_STEP = re.compile(rb'\{"step":(\d+),')
_LAST_FIELDS = re.compile(rb'"num_rows":(?P<num_rows>\d+),"checksum":"(?P<checksum>[0-9a-f]{16})"\}\n?\Z')
_LAST_BYTES = 80  # of a line, in which the last two fields are


def to_line(row: LedgerRow) -> bytes:
    """A row as a line of a file, its checksum filled in."""
    try:
        line = msgspec.json.encode(row)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold: escape this line
        record = {name: getattr(row, name) for name in LedgerRow.__slots__}
        line = json.dumps(record, separators=(",", ":")).encode()
    begin = line[: -len(_END)]  # the checksum is the last field, and empty
    return begin + checksum(begin).encode() + _END + b"\n"


def from_line(line: bytes, place: str, decoder: msgspec.json.Decoder[AnyRow]) -> AnyRow:
    """The row of a line, which is checked.

    Args:
        line: its newline included or not.
        place: `file:line`, for messages.
        decoder: `ROWS` or `KEPT_ROWS`.

    Raises:
        ValueError: it is no row of a ledger, or not as it was written.
    """
    check_line(line, place)
    return decoded(line, place, decoder)


def check_line(line: bytes, place: str) -> tuple[int, int]:
    """See that a line is as it was written, without reading all of it.

    Args:
        line, place: as of `from_line`.

    Returns:
        The row's step, and how many rows its file has.

    Raises:
        ValueError: it is no row of a ledger, or not as it was written.
    """
    begin, end = _STEP.match(line), _LAST_FIELDS.search(line, max(0, len(line) - _LAST_BYTES))
    if begin is None or end is None:
        raise ValueError(f"{place}: not a row of a ledger")
    if checksum(memoryview(line)[: end.start("checksum")]).encode() != end["checksum"]:
        raise ValueError(
            f"{place}: not a row of a ledger as it was written: its checksum is of another content"
        )
    return int(begin[1]), int(end["num_rows"])


def decoded(line: bytes, place: str, decoder: msgspec.json.Decoder[AnyRow]) -> AnyRow:
    """The row of a line that is checked already; arguments as of `from_line`."""
    try:
        try:
            return decoder.decode(line)
        except msgspec.DecodeError:  # half of a surrogate pair is more than it reads
            return msgspec.convert(json.loads(line), decoder.type)
    except ValueError as error:
        raise ValueError(f"{place}: not a row of a ledger ({error})") from error


def with_exact_log_probs(row: LedgerRow) -> LedgerRow:
    """Nine digits tell which float32 it was, and a run that continues needs that number to the last bit."""
    return replace(row, log_probs=tuple(array("f", row.log_probs)))


ROWS = msgspec.json.Decoder(LedgerRow)
KEPT_ROWS = msgspec.json.Decoder(KeptRow)
