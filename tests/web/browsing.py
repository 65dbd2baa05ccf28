"""A real browser in which the page is opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but this machine has an address.
BLOCKED = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WAIT = 60_000  # milliseconds


def find_browser() -> str | None:
    """The program of an installed browser; None: there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser(program: str) -> Iterator[Any]:
    """A browser without a window, from which no other machine can be reached."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", BLOCKED]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()
