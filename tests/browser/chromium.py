"""Chromium, and pages in it that tell what they ask for and complain of (fixtures: tests/conftest.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import does_without

expect.set_options(timeout=60_000)  # machines are shared


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's; a process can have one at a time."""
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

    def close(self) -> None:
        for page in self.pages:
            page.context.close()
