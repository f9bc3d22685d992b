"""A line of the ledger as far as a page shows it: what is only handed on stays the JSON that it is.

Reading a whole row as `record.ledger_row.LedgerRow` costs four times as much. Left out on purpose: what is
made of it (`chunk_parts`).
"""

from __future__ import annotations

import json
import re
from typing import cast

import msgspec

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class ViewedRow(msgspec.Struct, frozen=True, gc=False):
    """What a page shows of a `LedgerRow`, whose fields these are; `Raw` is JSON as it stands."""

    prompt_id: str
    group: int
    index: int
    prompt: msgspec.Raw
    prompt_token_ids: msgspec.Raw
    response: msgspec.Raw
    token_ids: msgspec.Raw
    log_probs: list[float]
    finish_reason: str
    seed: int
    policy_version: int
    reward: float | None
    components: dict[str, float]
    judge: str
    failure: msgspec.Raw
    watched: float | None
    kept: bool
    reason: str
    metadata: msgspec.Raw
    by_design: bool
    watched_failure: msgspec.Raw


class _Decoder:
    """Also of lines that have half of a surrogate pair, which is no text; a mark stands in its place then."""

    type = ViewedRow
    _decode = msgspec.json.Decoder(ViewedRow).decode

    def decode(self, line: bytes) -> ViewedRow:
        try:
            return self._decode(line)
        except msgspec.DecodeError:
            text = json.dumps(json.loads(line), ensure_ascii=False)  # whole pairs are letters now
            return self._decode(_HALF_A_PAIR.sub("\ufffd", text).encode())


VIEWED_ROWS = cast("msgspec.json.Decoder[ViewedRow]", _Decoder())
