"""The run as people see it: Prefect's page in a real browser. `make screenshots` keeps the pictures."""

from __future__ import annotations

import re

import pytest

from tests.flows.slide.test_segment_slide import faulty, segment, task_runs
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide
from tests.support.ui_fixtures import keep

pytestmark = [pytest.mark.slow, pytest.mark.browser, *(pytest.mark.filterwarnings(w) for w in THIRD_PARTY_WARNINGS)]


def flow_run_id(name: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return str(run.id)


def test_run_page_shows_blocks_and_the_retried_one(two_workers, prefect_server, page, tmp_path) -> None:
    slide = write_numbered_slide(tmp_path / "seen.tif")
    # The delay lets the retry be seen: the block waits for it beside those that are done.
    segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log", fail_on=5, times=1) | {"run.retry_delay": 2})
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
