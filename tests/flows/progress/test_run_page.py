"""A slide's page in the Prefect UI: keys, the bar, then artifacts of a real run."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from slidesam.flows.progress.reporters import SilentReporter
from slidesam.flows.progress.run_page import RunPage, _Bar, artifact_key, show_failure, show_result
from slidesam.tasks.errors import BlockFailures
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from tests.flows.progress.test_page_text import FACTS
from tests.flows.slide.test_segment_slide import faulty, segment
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]


@pytest.mark.parametrize(
    "name", ["CMU-1", "a.b", "a_b", "a-b", "a--b", "切片 7", "Präparat", "😀", "x" * 300, "x" * 299 + "y", "-", "a b\n"]
)
@pytest.mark.parametrize("label", ["cells", "Nuclei_2"])
def test_keys_are_what_prefect_takes(name: str, label: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    for kind in ("progress", "result", "failure"):
        key = artifact_key(name, label, kind)
        assert re.fullmatch(r"[a-z0-9-]+", key)
        assert len(key) < 200
        assert ArtifactCreate(key=key).key == key == artifact_key(name, label, kind)


def test_keys_tell_slides_apart() -> None:
    names = ["a.b", "a-b", "a_b", "a--b", "a b", "ä-b", "切片", "切", "x" * 300, "x" * 299 + "y", "😀"]
    keys = {artifact_key(name, label, "result") for name in names for label in ("cells", "b-cells", "b_cells")}
    assert len(keys) == 3 * len(names)
    assert artifact_key("a-b", "cells", "result") != artifact_key("a", "b-cells", "result")


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def inform(self, message):
        self.said.append(("inform", message))

    def begin(self, stage, total, done):
        self.said.append(("begin", stage, total, done))

    def advance(self, pieces=1):
        self.said.append(("advance", pieces))

    def end(self):
        self.said.append(("end",))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def page_with(monkeypatch, fails: bool = False, inner=None):
    """A page whose bar sends nothing, what it would send, and its clock."""
    sent, clock = [], Clock()

    def send(self, percent, words):
        sent.append((clock.now - 1000, percent, words))
        if fails:
            raise ConnectionError("the server is away")

    monkeypatch.setattr(_Bar, "_send", send)
    monkeypatch.setattr("slidesam.flows.progress.run_page._flow_run_id", lambda: "a flow run")
    return RunPage(inner or SilentReporter(), "slide", "cells", clock), sent, clock


def stages_of(page, clock, blocks: int = 100, seconds: float = 0.1) -> None:
    for stage in ("converting", "converting, level 4", "segmenting blocks", "matching seams", "painting labels"):
        page.begin(stage, blocks, 0)
        for _ in range(blocks):
            clock.now += seconds
            page.advance()
        page.end()


def test_bar_moves_every_few_seconds_and_never_back(monkeypatch) -> None:
    page, sent, clock = page_with(monkeypatch)
    with page:
        stages_of(page, clock)
    percents = [percent for _, percent, _ in sent]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    # Stages of 10 s: two updates each and one at the end, one as the run begins, one as it ends.
    assert 10 <= len(sent) <= 17
    assert sent[-1][2] == "finished in 50 s"
    assert "segmenting blocks: 100 of 100,\n10/s" in [words for *_, words in sent]


def test_bar_is_left_alone_while_the_server_is_away(monkeypatch, caplog) -> None:
    page, sent, clock = page_with(monkeypatch, fails=True)
    page._bar._log = logging.getLogger("page")
    with caplog.at_level("INFO"), page:
        stages_of(page, clock, blocks=1000, seconds=1.0)
    assert len(sent) < 25
    said = [record.message for record in caplog.records if "can't be shown" in record.message]
    assert len(said) == 1


def test_bar_says_where_a_run_failed_or_was_stopped(monkeypatch) -> None:
    for error, word in ((ValueError(), "failed"), (KeyboardInterrupt(), "stopped")):
        page, sent, clock = page_with(monkeypatch)

        def work(page=page, clock=clock, error=error):
            with page:
                page.begin("segmenting blocks", 2000, 0)
                clock.now += 60
                page.advance(1000)
                raise error

        with pytest.raises(type(error)):
            work()
        assert sent[-1][1:] == (50.0, f"{word} at segmenting blocks: 1,000 of 2,000,\nafter 60 s")


def test_others_are_told_too(monkeypatch) -> None:
    told = Told()
    page, _, _ = page_with(monkeypatch, inner=told)
    with page:
        page.inform("words")
        page.begin("matching seams", 4, 1)
        page.advance(3)
        page.end()
    assert told.said == [("inform", "words"), ("begin", "matching seams", 4, 1), ("advance", 3), ("end",)]


def test_nothing_raises_where_there_is_no_flow_run(run) -> None:
    show_result(run, FACTS)
    show_result(run, {})
    show_failure(run, run.slide.path, ValueError())
    with RunPage(SilentReporter(), run.name, run.label) as page:
        page.begin("segmenting blocks", 9, 0)
        page.advance()
        page.end()


def artifacts_of(flow_run_name: str) -> dict[str, object]:
    """The artifacts of a flow run by the kinds that their keys end with."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name]))
        found = client.read_artifacts(flow_run_filter=named, limit=200)
    return {artifact.key.rpartition("--")[2]: artifact for artifact in found if artifact.key}


def on_its_page(two_workers, slide: Path, output: Path, settings: dict, name: str):
    """Segments a slide in a flow that shows it on its page, as `segment_slide` does."""
    from prefect import flow

    @flow(name="page", flow_run_name=name, persist_result=False)
    def shown() -> None:
        run = plan_run(slide, output, make_settings(overrides=settings))
        try:
            with RunPage(SilentReporter(), run.name, run.label) as page:
                facts = segment(two_workers, slide, output, settings, page)
        except Exception as error:
            show_failure(run, slide, error)
            raise
        show_result(run, facts)

    shown()


@pytest.mark.slow
def test_artifacts_stand_on_the_slides_own_page(two_workers, prefect_server, tmp_path, monkeypatch) -> None:
    slide = write_numbered_slide(tmp_path / "paged.tif")
    settings = faulty(tmp_path / "log", fail_on=5, times=1) | {"run.retries": 0}
    with pytest.raises(BlockFailures):
        on_its_page(two_workers, slide, tmp_path / "out", settings, "paged, first")
    failed = artifacts_of("paged, first")
    assert set(failed) == {"progress", "failure"}
    assert "| 4 | 1 | 1 | 64,&nbsp;64 | RuntimeError: made to fail on 5 |" in failed["failure"].data
    assert re.fullmatch(r"failed at segmenting blocks: 9 of 9,\n\nafter .*", failed["progress"].description)
    assert failed["progress"].data == 85

    on_its_page(two_workers, slide, tmp_path / "out", settings, "paged, second")
    done = artifacts_of("paged, second")
    assert set(done) == {"progress", "result"}
    assert done["progress"].data == 100
    assert done["progress"].key == failed["progress"].key == "paged--cells--progress"
    assert done["result"].data.startswith("# paged: 9 cells\n")
    assert "](data:image/jpeg;base64," in done["result"].data


@pytest.mark.slow
def test_stage_lines_are_in_the_slides_own_log(two_workers, prefect_server, tmp_path, caplog) -> None:
    on_its_page(
        two_workers,
        write_numbered_slide(tmp_path / "logged.tif"),
        tmp_path / "out",
        faulty(tmp_path / "log") | {"output.formats": ["table"]},
        "logged, page",
    )
    lines = [
        record.getMessage().partition(";")[0]
        for record in caplog.records
        if getattr(record, "flow_run_name", None) == "logged, page" and " of " in record.getMessage()
    ]
    assert [line for line in lines if "logged:" not in line and "Dask" not in line] == [
        "converting: 1 of 1",
        "segmenting blocks: 9 of 9",
        "painting labels: 9 of 9",
        "describing objects: 1 of 1",
    ]


@pytest.mark.slow
def test_a_run_that_is_tried_again_goes_on_with_its_bar(prefect_server, run) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    @flow(name="page", flow_run_name="tried twice", retries=1, persist_result=False)
    def twice() -> int:
        with RunPage(SilentReporter(), run.name, run.label):
            tries.append(1)
            if len(tries) == 1:
                raise ValueError
        return 1

    tries: list[int] = []
    twice()
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=["tried twice"]))
        # Prefect notes the result as an artifact without a key.
        (bar,) = [found for found in client.read_artifacts(flow_run_filter=named) if found.key]
    assert len(tries) == 2
    assert bar.data == 100


@pytest.mark.slow
def test_a_server_that_goes_away_costs_nothing(prefect_server, tmp_path, run) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    @flow(name="page", persist_result=False)
    def away() -> None:
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            with RunPage(SilentReporter(), run.name, run.label) as page:
                page.begin("segmenting blocks", 9, 0)
                page.advance(9)
                page.end()
            show_failure(run, run.slide.path, ValueError("a"))
            show_result(run, FACTS)

    away()
