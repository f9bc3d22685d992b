"""Which keys of its config a command reads, in the world of `leaf_world.py`."""

from __future__ import annotations

from typing import Any

import pytest

from rs_aligner.config import reading
from rs_aligner.config.base import Section, check

READS = "reads"
"""The note of which keys were read; the others are what the code made of them."""


def note_reads(patch: pytest.MonkeyPatch) -> set[tuple[type[Section], str]]:
    """Every key that is read from now on, by its section; not by the checks, which look at each of them."""
    reads: set[tuple[type[Section], str]] = set()
    is_checking: list[bool] = []

    def get(section: Section, name: str) -> Any:
        if not is_checking and name in type(section).model_fields:
            reads.add((type(section), name))
        return object.__getattribute__(section, name)

    def check_unseen(config: Section, key: str) -> list[str]:
        is_checking.append(True)
        try:
            return list(check(config, key))
        finally:
            is_checking.pop()

    patch.setattr(Section, "__getattribute__", get, raising=False)
    patch.setattr(reading, "check", check_unseen)
    return reads
