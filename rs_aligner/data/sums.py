"""Checksums of prompts: what the ranks of a run compare, and what its attempts note."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from hashlib import blake2b

from rs_aligner.files import running_checksum
from rs_aligner.rollout import Prompt

DIGEST_BYTES = 6  # a double, by which ranks compare, holds as many exactly
_text = json.JSONEncoder().encode
_row = json.JSONEncoder(sort_keys=True, default=str).encode


class PromptSums:
    """Checksums that grow with each prompt."""

    def __init__(self) -> None:
        self._rows, self._ranks = running_checksum(), blake2b(digest_size=DIGEST_BYTES)

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> PromptSums:
        """Of some prompts."""
        found = cls()
        for prompt in prompts:
            found.add(prompt)
        return found

    def add(self, prompt: Prompt) -> None:
        """Take the next prompt in."""
        tokens = array("q", prompt.token_ids).tobytes()
        row = _row(prompt.metadata).encode()
        self._rows.update(
            b"".join((len(tokens).to_bytes(8, "little"), tokens, len(row).to_bytes(8, "little"), row))
        )
        self._ranks.update(b"".join((_text(prompt.id).encode(), b"\0", tokens, b"\0")))

    @property
    def fingerprint(self) -> str:
        """Of their tokens and rows, not of where they lie."""
        return self._rows.hexdigest()

    @property
    def digest(self) -> int:
        """Of their ids and tokens: a number below 2^48."""
        return int.from_bytes(self._ranks.digest(), "big")
