"""The site: built without a warning, every page in its menu, links lead somewhere, nothing comes from a host.

Left out on purpose: whether other hosts answer, since tests have no network; how it looks.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import Opener
from tests.conftest import ROOT
from tests.docs.conftest import Site
from tests.test_links import PAGES

pytestmark = pytest.mark.slow
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "srcset")}


class Found(HTMLParser):
    """What a page links, what it loads, and the names that can be linked in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.names.add(value)
            elif (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def found(site: Site) -> dict[Path, Found]:
    return {page: Found(page.read_text(encoding="utf-8")) for page in site.pages()}


def test_it_is_built_without_a_warning(site: Site) -> None:
    assert (site.status, site.said) == (0, "")


def test_each_page_of_the_repository_is_a_page_of_it_and_in_the_menu(
    site: Site, found: dict[Path, Found]
) -> None:
    start = site.folder / "docs" / "index.html"
    listed = {(start.parent / unquote(urlsplit(link).path)).resolve() for link in found[start].links}
    expected = {(site.folder / page.relative_to(ROOT)).with_suffix(".html").resolve() for page in PAGES}
    assert len(expected) > 25
    assert [
        str(page) for page in sorted(expected - {start.resolve()}) if page not in listed or not page.is_file()
    ] == []


def test_every_link_leads_to_a_page_or_a_heading_that_is_there(site: Site, found: dict[Path, Found]) -> None:
    broken = []
    for page, one in found.items():
        for link in [*one.links, *one.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_relative_to(site.folder.resolve()) and target != page:
                broken.append(f"{page.name}: {link} leads out of the site")
            elif not target.is_file():
                broken.append(f"{page.name}: {link} is not there")
            elif parts.fragment and target.suffix == ".html" and parts.fragment not in found[target].names:
                broken.append(f"{page.name}: {link} has no such heading")
    assert broken == []


def test_nothing_is_loaded_from_a_host(site: Site, found: dict[Path, Found]) -> None:
    loads = [load for one in found.values() for load in one.loads]
    assert len(loads) > 100
    assert [load for load in loads if urlsplit(load).netloc] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*", styles) == []
    assert "@import" not in styles


def test_it_links_no_host_but_those_that_a_page_writes_and_the_makers(found: dict[Path, Found]) -> None:
    linked = {urlsplit(link).netloc for one in found.values() for link in one.links} - {""}
    written = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    makers = {"www.sphinx-doc.org", "github.com", "pradyunsg.me"}  # of Sphinx and its theme, at the foot
    assert sorted(host for host in linked - makers if f"//{host}" not in written) == []


def test_it_names_no_folder_of_this_machine(site: Site) -> None:
    here = {str(ROOT), str(Path.home()), str(site.folder)} - {"/", "/root"}
    texts = [
        path for path in site.folder.rglob("*") if path.suffix in {".html", ".js", ".css", ".txt", ".json"}
    ]
    assert len(texts) > 50
    named = [
        f"{path.relative_to(site.folder)}: {one}"
        for path in texts
        for one in here
        if re.search(rf"{re.escape(one)}(?![\w-])", path.read_text(encoding="utf-8"))
    ]
    assert named == []


def test_it_is_looked_at_and_searched_from_files_alone(site: Site, opened: Opener) -> None:
    page, seen = opened(site.folder / "index.html", width=400)
    page.wait_for_url("**/docs/index.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.goto((site.folder / "search.html").as_uri() + "?q=percentile")
    # What is found is listed one by one.
    expect(page.locator("ul.search li a").get_by_text("Who is kept", exact=True).first).to_be_visible()
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert seen.complaints == []
