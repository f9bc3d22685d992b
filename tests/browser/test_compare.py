"""The page that compares runs, in Chromium: what it holds, for whom, and that it asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from rs_aligner.report.compare import compare, write_page
from tests.browser.chromium import Opener
from tests.report.test_compare import AFTER, BEFORE, made


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs whose names are as long as people make them, with answers that are no harmless text."""
    folder = tmp_path_factory.mktemp("compared")
    names = ("stories_lr3e-4_n8_top1_" * 3 + "a", "stories_lr1e-4_n16_top2_" * 3 + "b")
    runs = [made(folder / name, scores) for name, scores in zip(names, (BEFORE, AFTER), strict=True)]
    return write_page(compare(runs), folder / "compare.html")


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_the_page_is_for_everybody_and_asks_for_nothing(
    width: int, scheme: str, compared: Path, opened: Opener
) -> None:
    page, seen = opened(compared, width=width, scheme=scheme)
    title = page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    problems = Axe().run(page).response["violations"]
    assert [(one["id"], one["help"], one["nodes"][0]["html"][:200]) for one in problems] == []
    page.keyboard.press("Tab")
    expect(page.locator("a.skip")).to_be_focused()
    page.locator("summary").first.press("Enter")  # the numbers of the first picture
    expect(page.locator("details table").first).to_be_visible()
    assert "<script>" in page.locator("#prompts").inner_text()
    assert page.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
    assert page.title() == title
    assert seen.requests == [compared.as_uri()]
    assert seen.complaints == []
