"""Both pages in a real Chromium: nothing is fetched, nothing fails, nothing is cut off, and what can be clicked works."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.pages.contact_sheet import write_contact_sheet
from tests.support.slides import write_blobs
from tests.support.ui_fixtures import keep
from tests.tasks.pages.test_slide_page import make

pytestmark = pytest.mark.browser
WIDTHS = (1400, 400)


def test_reports_open_without_a_network(page, tmp_path: Path) -> None:
    run, _ = make(write_blobs(tmp_path / "blobs.tif", 512), tmp_path / "out", slide__mpp=0.5)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
    )
    for path in (write_contact_sheet(run.output), run.paths.export("report.html")):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(path.as_uri())
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") == width
                keep(page, f"{path.name}-{width}-{scheme}", tmp_path)
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    density = page.locator(".map .density")
    assert density.is_visible()
    page.get_by_label("density").uncheck()
    assert not density.is_visible()
    page.get_by_text("settings, versions, fingerprints").click()
    assert page.get_by_text('"block_shape"').is_visible()
    assert len(page.pdf()) > 100_000
    # From the sheet to the report, by its link.
    page.goto((run.output / "report.html").as_uri())
    page.get_by_label("order").select_option("far")
    page.get_by_role("link", name="blobs").first.click()
    assert page.title() == f"blobs: {page.locator('.key b').first.inner_text()} cells"
    assert problems == []
