"""Writes rs_aligner/report/assets/meanings.json from the tables of docs/metrics.md: `python
scripts/meanings.py`.

A run's page has this as its glossary, for the page of the docs is not in the package. Left out on purpose:
the text between the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "metrics.md"
TARGET = ROOT / "rs_aligner" / "report" / "assets" / "meanings.json"


def meanings() -> str:
    """The keys with their meanings, as JSON; of keys that several tables have, the first counts."""
    found: dict[str, str] = {}
    for key, text in rows():
        found.setdefault(key, text)
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def rows() -> Iterator[tuple[str, str]]:
    """Each key of the tables with its meaning as plain text."""
    for line in SOURCE.read_text(encoding="utf-8").splitlines():
        if (match := re.fullmatch(r"\| (`[^|]+`) \| (.+) \|", line)) is not None:
            for key in re.findall(r"`([^`]+)`", match[1]):
                yield key, plain(match[2])


def plain(text: str) -> str:
    """Markdown of a cell as people read it: no links, stars or backticks."""
    text = re.sub(r" ?\(\[[^\]]+\]\([^)]+\)\)", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"\*\*|`", "", text)


if __name__ == "__main__":
    TARGET.write_text(meanings(), encoding="utf-8")
