"""The run as people see it: Prefect's page in a real browser. `make screenshots` keeps the pictures."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.slides import write_numbered_slide
from tests.test_flows import faulty, segment, task_runs

pytestmark = [pytest.mark.slow, pytest.mark.browser, *(pytest.mark.filterwarnings(w) for w in THIRD_PARTY_WARNINGS)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing that looks for hosts outside: the page and its server are on this machine.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture
def page():
    if CHROMIUM is None:
        pytest.skip("Chromium is not here: install it to see the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        # The page's own analytics have nothing to look for outside.
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1|10\.177\.0\.1)"), lambda route: route.abort())
        yield page
        browser.close()


def keep(page, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SLIDESAM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"))


def flow_run_id(name: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return str(run.id)


def test_run_page_shows_blocks_and_the_retried_one(two_workers, prefect_server, page, tmp_path) -> None:
    slide = write_numbered_slide(tmp_path / "seen.tif")
    # The delay lets the retry be seen: the block waits for it beside those that are done.
    segment(slide, tmp_path / "out", faulty(tmp_path / "log", fail_on=5, times=1) | {"run.retry_delay": 2})
    assert task_runs("seen")["block 4 (row 1, column 1)"] == ("Completed", 2)
    ui = prefect_server.removesuffix("/api") + "/v2"

    page.goto(f"{ui}/runs")
    page.get_by_text("seen · function").first.wait_for(timeout=60_000)
    keep(page, "runs", tmp_path)

    page.goto(f"{ui}/runs/flow-run/{flow_run_id('segment blocks of seen')}")
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_text("block 4 (row 1, column 1)").first.wait_for(timeout=60_000)
    keep(page, "blocks", tmp_path)

    page.get_by_text("block 4 (row 1, column 1)").first.click()
    page.wait_for_url("**/task-run/**")
    page.get_by_text(re.compile("made to fail on 5")).first.wait_for(timeout=60_000)
    keep(page, "retried-block", tmp_path)
