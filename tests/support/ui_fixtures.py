"""A real browser for the pages that people see. `make screenshots` keeps the pictures."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing that looks for hosts outside: the page and its server are on this machine.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture
def page() -> Iterator[object]:
    """An empty page of Chromium."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not here: install it to see the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        # Two cores may be busy with workers.
        page.set_default_timeout(60_000)
        # The page's own analytics have nothing to look for outside.
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1|10\.177\.0\.1)"), lambda route: route.abort())
        yield page
        browser.close()


def keep(page, name: str, tmp_path: Path) -> None:
    """Takes a screenshot, to be looked at by whoever asked for it."""
    folder = Path(os.environ.get("SLIDESAM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"))
