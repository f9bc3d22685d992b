"""Small records with a checksum of themselves, so that what was flipped, cut or mixed is not believed.

What counts is what the record says: white space and the order of its keys are free. A checksum tells
accidents, not forgers. Left out on purpose: where records lie, and their format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rs_aligner.files import checksum

_KEY = "checksum"


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its checksum; it must be what JSON can express."""
    return {**record, _KEY: _checksum(record)}


def unseal(found: Any) -> dict[str, Any]:
    """A record that was sealed, without its checksum.

    Raises:
        ValueError: it is no record, or not as it was sealed.
    """
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError("it holds no keys and values")
    record = {key: value for key, value in found.items() if key != _KEY}
    try:
        is_whole = found.get(_KEY) == _checksum(record)
    except (TypeError, ValueError, RecursionError):  # what YAML can hold and JSON cannot, or holds itself
        is_whole = False
    if not is_whole:
        raise ValueError("its checksum is not that of what it holds: it was changed or damaged")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return checksum(json.dumps(record, sort_keys=True).encode())
