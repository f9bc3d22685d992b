"""What is read of each rollout where a run is summed up: a few fields, and texts where they are shown."""

from __future__ import annotations

import msgspec

SUMS_FILE = "sums.json"
"""In `report/`: what the ledger came to, written with every page that has something new."""

_TEXT = 400  # characters of a prompt or an answer


class SummedRow(msgspec.Struct):
    """What is summed up of a `LedgerRow`, whose fields these are; read in a fraction of the time."""

    prompt_id: str
    group: int
    index: int
    prompt: str
    response: str
    token_ids: list[int]
    finish_reason: str
    policy_version: int
    reward: float | None
    watched: float | None
    watched_failure: str | None
    kept: bool
    by_design: bool

    @property
    def is_watched(self) -> bool:
        """Whether the watched judge was asked."""
        return self.watched is not None or self.watched_failure is not None


SUMMED_ROWS = msgspec.json.Decoder(SummedRow)


def shown(text: str) -> str:
    """A text as it can be kept and shown: cut where it is long, halves of surrogate pairs as escapes."""
    text = text if len(text) <= _TEXT else text[:_TEXT] + " ..."
    return text.encode("utf-8", "backslashreplace").decode()
