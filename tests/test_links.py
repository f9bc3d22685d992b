"""Links in the pages lead somewhere: files are there, headings too; a page that names another one links it.

Left out on purpose: whether other hosts answer, since tests have no network.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "results" / "README.md",
    ROOT / "scripts" / "slurm" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
NAMES_OTHERS = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which is a list of short lines
PAGE_IN_CODE = re.compile(r"[\w./-]+\.md")
PAGE_IN_SOURCE = re.compile(r"\bdocs/[\w/-]+\.md\b")


def prose(text: str) -> str:
    """A page without its fenced blocks; inline code stays."""
    return re.sub(r"^([ ]*)(```+|~~~+).*?^\1\2[ ]*$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings: lower case, no punctuation, hyphens for spaces; twins are numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}[ ]+(.+?)[ #]*$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        number, name = 0, slug
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    problems = []
    for target in LINK.findall(CODE.sub("", prose(page.read_text(encoding="utf-8")))):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            problems.append(f"{target}: no such file")
        elif anchor and (place.suffix != ".md" or anchor not in anchors(place.read_text(encoding="utf-8"))):
            problems.append(f"{target}: no such heading")
    return problems


def only_named(page: Path) -> list[str]:
    """Pages that stand in backticks, where a link could be clicked."""
    code = (match[2] for match in CODE.finditer(prose(page.read_text(encoding="utf-8"))))
    names = [name for name in code if PAGE_IN_CODE.fullmatch(name)]
    others = {other.resolve() for other in PAGES} - {page.resolve()}
    return [name for name in names if {(ROOT / name).resolve(), (page.parent / name).resolve()} & others]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", NAMES_OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_that_names_another_one_links_it(page: Path) -> None:
    assert only_named(page) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = LINK.findall(CODE.sub("", prose(page.read_text(encoding="utf-8"))))
        links = (target.partition("#")[0] for target in targets if not ELSEWHERE.match(target))
        waiting += [page.parent / link for link in links if link]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page.resolve() not in reached] == []


def test_pages_that_the_sources_name_are_there() -> None:
    folders = ("rs_aligner", "examples", "scripts", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix in {".py", ".yaml", ".sh", ".sbatch", ".c", ".h"}]
    assert len(texts) > 150
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in texts
        for name in PAGE_IN_SOURCE.findall(path.read_text(encoding="utf-8"))
    }
    assert named
    assert sorted(pair for pair in named if not (ROOT / pair[1]).is_file()) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    other = "# One `thing`, twice!\n\n# One thing twice\n```\n# not a heading\n```\n"
    (tmp_path / "other.md").write_text(other)
    page.write_text(
        "# Here\n[fine](other.md) [fine](other.md#one-thing-twice-1) [fine](#here) [far](https://x.y/z)\n"
        "[![picture](gone.png)](other.md) `[code](gone.md)`\n```\n[block](gone.md)\n```\n"
        "[gone](gone.md) [heading](other.md#not-a-heading) [own](#there)\n"
    )
    assert broken(page) == [
        "gone.png: no such file",
        "gone.md: no such file",
        "other.md#not-a-heading: no such heading",
        "#there: no such heading",
    ]
