"""The report in a browser: Debian's Chromium, driven by Playwright, over files only."""
