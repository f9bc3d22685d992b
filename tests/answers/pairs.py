"""Pairs of a response and a reference, from files beside this one."""

from __future__ import annotations

import json
from pathlib import Path

CASES = Path(__file__).parent / "cases"


def pairs(name: str) -> list[tuple[str, str]]:
    """Responses and their references; `prompt` and `id` are not needed."""
    rows = [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["response"], row["answer"]) for row in rows]
