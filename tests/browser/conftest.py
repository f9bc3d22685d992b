"""One Chromium for all tests of a process, and pages that tell what they ask for and complain of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.made_up_run import Size, make_run
from rs_aligner.report.page import write_report
from tests.conftest import does_without

expect.set_options(timeout=60_000)  # machines are shared

LARGE = Size(steps=27, prompts=32, answers=24, limit=160)
"""20,736 rollouts, each step in two files; making 100,000 takes too long for a test."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or does_without("Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did behind the reader's back."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Opener:
    """Opens pages, each in a profile of its own."""

    browser: Browser
    pages: list[Page] = field(default_factory=list)

    def __call__(
        self, path: Path, address: str = "", width: int = 1200, scheme: str = "light"
    ) -> tuple[Page, Seen]:
        """The page of a file, loaded; `address` is what stands behind the `#`."""
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        page, seen = context.new_page(), Seen()
        self.pages.append(page)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on(
            "dialog", lambda dialog: (seen.complaints.append(f"dialog {dialog.message}"), dialog.dismiss())
        )
        page.goto(f"{path.as_uri()}{address}")
        return page, seen


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    opener = Opener(browser)
    yield opener
    for page in opener.pages:
        page.context.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run, whose rollouts are within the page; it lies where nothing else does."""
    folder = tmp_path_factory.mktemp("small")
    make_run(folder / "run", Size(steps=3, prompts=4, answers=6, limit=60, held_out_interval=2))
    return write_report(folder / "run").rename(folder / "mailed.html")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose rollouts lie beside the page."""
    folder = tmp_path_factory.mktemp("large") / "run"
    make_run(folder, LARGE)
    write_report(folder)
    return folder
