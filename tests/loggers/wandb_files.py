"""What W&B has written without a server: records of an offline run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def wandb_history(folder: Path) -> dict[tuple[str, int], Any]:
    """What was logged in all offline runs below a folder, by key and step."""
    found: dict[tuple[str, int], Any] = {}
    for record in wandb_records(folder):
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        step = items.get("trainer/global_step")
        found.update({(key, step): value for key, value in items.items()})
    return found


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of all offline runs below a folder, which have ended."""
    for file in sorted(folder.rglob("*.wandb")):
        deadline = time.monotonic() + 60
        while not (records := _parsed(file)) or records[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < deadline, f"{file} has no end"
            time.sleep(0.1)  # W&B's service still writes when the run's own process is through
        yield from records


def _parsed(file: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(data) for data in _records(file.read_bytes())]


def _records(content: bytes) -> Iterator[bytes]:
    """The records of an offline W&B file: LevelDB's log format, behind a head of 7 bytes.

    Blocks of 32 KiB hold chunks of checksum (4 bytes), length (2), type (1) and data; a record is one chunk
    (type 1), or a first (2), middle ones (3) and a last (4). What is not whole yet is left out.
    """
    block, place, parts = 32768, 7, []
    while place + 7 <= len(content):
        if block - place % block < 7:  # too little room for another head: padding
            place += block - place % block
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        if place + 7 + length > len(content):
            return
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
