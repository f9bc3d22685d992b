"""A run as one page: `report.html` in its folder, with all inside but the rollouts of a large run.

What is said comes from `story` and `checks`, pictures from `curves` and `distributions`, rollouts from
`chunks`; the layout is in `templates/`. Every text that comes from outside is escaped by the templates, none
is put together here. The page asks nothing of any other host, and forbids its own scripts to. Left out on
purpose: when a page is written while a run goes on (`live`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rs_aligner import __version__
from rs_aligner.files import write_whole
from rs_aligner.report.about import About, about
from rs_aligner.report.checks import Told, checked
from rs_aligner.report.chunks import Chunks, write_chunks
from rs_aligner.report.curves import curves
from rs_aligner.report.distributions import distributions
from rs_aligner.report.facts import Facts, facts_of
from rs_aligner.report.pictures import Picture, number
from rs_aligner.report.prompt_list import SeenPrompt
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.report.story import Verdict, verdict
from rs_aligner.report.sums import Sums
from rs_aligner.report.worth import Cost, costs, selection_against_chance

PAGE = "report.html"
MOST_PROMPTS = 8  # of the hardest, and of the easiest
_HERE = Path(__file__).parent
_STATES = {"good": "fine", "amber": "look at it", "red": "worry", "unknown": "not known"}


@dataclass(frozen=True)
class Meaning:
    """An entry of the page's glossary: its anchor, the key, what it means."""

    anchor: str
    key: str
    text: str


@dataclass(frozen=True)
class Page:
    """All that a page shows; `templates/report.html` says where.

    Attributes:
        run: whose it is.
        about: what it was made with.
        facts: figures and sums.
        verdict: did it work?
        chance: sentences on selection against chance.
        costs: what it cost.
        checks: what to worry about.
        curves, distributions: pictures.
        rollouts: what the viewer needs; None for a run that has none.
        glossary: what keys mean, in the order of docs/metrics.md.
        problems: what could not be read.
        written: when.
    """

    run: RunData
    about: About
    facts: Facts
    verdict: Verdict
    chance: list[str]
    costs: list[Cost]
    checks: list[Told]
    curves: list[Picture]
    distributions: list[Picture]
    rollouts: Chunks | None
    glossary: list[Meaning]
    problems: list[str]
    written: str
    version: str = __version__

    @property
    def ends(self) -> tuple[list[SeenPrompt], list[SeenPrompt]]:
        """The hardest and the easiest prompts; of few, none is in both."""
        if self.sums is None:
            return [], []
        hardest, easiest = self.sums.hardest, self.sums.easiest
        known = len({one.id for one in (*hardest, *easiest)})
        return hardest[: min(MOST_PROMPTS, (known + 1) // 2)], easiest[: min(MOST_PROMPTS, known // 2)]

    @property
    def sums(self) -> Sums | None:
        """Of the ledger; None for a run that has none."""
        return self.facts.sums


def write_report(run: Path, check: Callable[[], None] = lambda: None) -> Path:
    """Write a run's page, and what lies beside it; both are whole at any moment.

    Args:
        run: the folder of the run; nothing but `report.html` and `report/` is written there.
        check: asked before anything is written; what it raises stops it.

    Returns:
        The page.

    Raises:
        NotARun: there is no run in the folder.
        ValueError: it is of a format that this version does not read, or its metrics are damaged.
        OSError: it cannot be written there.
    """
    check()
    data = open_run(run)
    content = templates().get_template("report.html").stream(page=_page(data))
    path = data.folder / PAGE
    write_whole(path, (piece.encode("utf-8", "backslashreplace") for piece in content), check)
    return path


def _page(data: RunData) -> Page:
    found = about(data)
    facts = facts_of(data, found)
    rows, sums = facts.rows, facts.sums
    rollouts = write_chunks(data.folder) if data.kind == "train_rs" else None
    problems = [*filter(None, [found.problem]), *(sums.damaged if sums is not None else ())]
    shown = list(curves(rows, data.kind))
    return Page(
        data,
        found,
        facts,
        verdict(facts, data.kind),
        selection_against_chance(facts) if data.kind == "train_rs" else [],
        costs(facts),
        checked(facts) if data.kind == "train_rs" else [],
        shown,
        list(distributions(sums)) if sums is not None else [],
        rollouts if rollouts is not None and rollouts.num_rollouts else None,
        list(glossary()),
        problems,
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def glossary() -> Iterator[Meaning]:
    """What each key of `metrics.jsonl` means: `assets/meanings.json`, which scripts/meanings.py makes."""
    for key, text in json.loads((_HERE / "assets" / "meanings.json").read_text(encoding="utf-8")).items():
        yield Meaning(anchor(key), key, text)


def anchor(key: str) -> str:
    """The anchor of a key in the glossary."""
    return "means-" + "".join(one if one.isalnum() or one == "_" else "-" for one in key)


@cache
def templates() -> jinja2.Environment:
    """The templates, which escape whatever is put into them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_HERE / "templates", _HERE / "assets"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "anchor": anchor,
        "state": _STATES.__getitem__,
    }
    environment.filters.update(filters)
    return environment
