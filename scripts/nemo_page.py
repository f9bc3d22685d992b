"""Writes the tables of docs/guides/from_nemo_aligner.md from the code that translates.

    python scripts/nemo_page.py

Left out on purpose: the text around them, which is the page's own and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from rs_aligner.config.nemo_scripts import SCRIPTS, Script
from rs_aligner.config.upstream import TRAIN_RS, Refusal

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "from_nemo_aligner.md"
BEGIN, END = "<!-- Written by scripts/nemo_page.py from here -->", "<!-- to here -->"


def page(text: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return f"{before}{BEGIN}\n\n{''.join(tables())}{END}{behind}"


def tables() -> Iterator[str]:
    """A section for each of NeMo-Aligner's scripts; keys that all trainings share stand with the first."""
    for name, script in SCRIPTS.items():
        yield f"### `{name}`\n\nHere `rs-aligner {script.command}`.\n\n"
        shared = TRAIN_RS if script.upstream is not TRAIN_RS and not script.upstream.used else None
        if shared is not None:
            yield "What the trainings share is as above. Besides:\n\n"
        yield from _used(script)
        yield from _table("key there", "key here", {key: f"`{to}`" for key, to in script.renamed.items()})
        yield from _table("no effect", "why", _others(script.upstream.no_effect, shared and shared.no_effect))
        refused = {key: _told(why) for key, why in script.upstream.refused.items()}
        yield from _table("refused", "why, and what to do", _others(refused, shared and shared.refused))


def _used(script: Script) -> Iterator[str]:
    if script.upstream.used:
        yield "Used with their old meaning:\n\n"
        split = sorted(
            (section, key) for section, _, key in (one.rpartition(".") for one in script.upstream.used)
        )
        for section, keys in groupby(split, key=lambda one: one[0]):
            yield f"- `{section}`: {', '.join(f'`{key}`' for _, key in keys)}\n"
        yield "\n"


def _others(reasons: Mapping[str, str], known: Mapping[str, object] | None) -> dict[str, str]:
    return {key: why for key, why in reasons.items() if known is None or key not in known}


def _told(why: Refusal) -> str:
    allowed = [str(one).lower() for one in why.harmless if one is not False]
    return f"{why.reason}{f' (`{allowed[0]}` is fine)' if allowed else ''}"


def _table(left: str, right: str, rows: Mapping[str, str]) -> Iterator[str]:
    if rows:
        yield f"| {left} | {right} |\n|---|---|\n"
        for key, text in rows.items():
            linked = re.sub(r"docs/(\w+\.md)", r"[docs/\1](../\1)", text)
            yield f"| `{key}` | {linked} |\n"
        yield "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
