"""Checksums of prompts, rows and pairs: what an attempt notes, and what the ranks of a run compare."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Generic, Self, TypeVar

from rs_aligner.files import running_checksum
from rs_aligner.rollout import PreferencePair, Prompt, TrainingRow

DIGEST_BYTES = 6  # a double, by which ranks compare, holds as many exactly
_TOGETHER = 4096  # pieces that are summed at once
_text = json.JSONEncoder().encode
_row = json.JSONEncoder(sort_keys=True, default=str).encode
T = TypeVar("T")


class Sums(Generic[T]):
    """Checksums that grow with each item."""

    def __init__(self) -> None:
        self._found = running_checksum()
        self._waiting: list[bytes] = []

    @classmethod
    def of(cls, items: Iterable[T]) -> Self:
        """Of some items."""
        found = cls()
        for item in items:
            found.add(item)
        return found

    def add(self, item: T) -> None:
        """Take the next item in."""
        raise NotImplementedError

    def _add(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._waiting += (len(piece).to_bytes(8, "little"), piece)
        if len(self._waiting) > _TOGETHER:
            self._take()

    def _take(self) -> None:
        self._found.update(b"".join(self._waiting))
        self._waiting.clear()

    @property
    def fingerprint(self) -> str:
        """Of their tokens and what else is learnt or judged by, not of where they lie."""
        self._take()
        return self._found.hexdigest()

    def noted(self) -> dict[str, Any]:
        """All that there is to note, as plain JSON values."""
        return {"fingerprint": self.fingerprint}


class PromptSums(Sums[Prompt]):
    """Of tokens and data rows; and for the ranks another one, of ids and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._ranks = blake2b(digest_size=DIGEST_BYTES)

    def add(self, item: Prompt) -> None:
        """Take the next prompt in."""
        tokens = _tokens(item.token_ids)
        self._add(tokens, _row(item.metadata).encode())
        self._ranks.update(b"".join((_text(item.id).encode(), b"\0", tokens, b"\0")))

    @property
    def digest(self) -> int:
        """Of their ids and tokens: a number below 2^48."""
        return int.from_bytes(self._ranks.digest(), "big")

    def noted(self) -> dict[str, Any]:
        """All that there is to note, as plain JSON values."""
        return {"fingerprint": self.fingerprint, "digest": self.digest}


class RowSums(Sums[TrainingRow]):
    """Of tokens and weights."""

    def add(self, item: TrainingRow) -> None:
        """Take the next row in."""
        self._add(_tokens(item.prompt), _tokens(item.response), _row(item.weight).encode())


class PairSums(Sums[PreferencePair]):
    """Of tokens."""

    def add(self, item: PreferencePair) -> None:
        """Take the next pair in."""
        self._add(_tokens(item.chosen), _tokens(item.rejected))


def _tokens(token_ids: Sequence[int]) -> bytes:
    return array("q", token_ids).tobytes()
