"""Running it every night, on what infra/prefect-server brings up: the form, cohorts, retries, the inbox, crashes, many at once.

Everything is real: PostgreSQL, the server with its password, the worker, the automations, and Chromium.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from slidesam.tasks.run.status import read_state
from tests.support import ROOT
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.prefect_server_fixtures import (
    ENDED,
    HAS_POSTGRES,
    PATIENCE,
    Server,
    blocks_done,
    server_folder,
    settings,
)
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import until
from tests.support.ui_fixtures import keep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_POSTGRES, reason="PostgreSQL isn't here: `infra/prefect-server/prefect-server install` as root"
    ),
    *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS),
]
QUIET = 20
# How many slides at once: `make many-slides` takes thirty, which needs four minutes.
MANY = int(os.environ.get("SLIDESAM_TEST_SLIDES", "8"))


class Site(Server):
    """A server with all that belongs to it, as a group would have it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder, self.results, self.inbox = folder, folder / "results", folder / "inbox"
        self.inbox.mkdir()
        # Workers that are there already: what is tested here isn't how they start.
        self.attached = folder / "attached.yaml"
        ours = f"SLIDESAM_INBOX={self.inbox}\nSLIDESAM_INBOX_CRON=* * * * *\nSLIDESAM_CLUSTER={self.attached}\n"
        self.config.write_text(self.config.read_text().replace("AT_ONCE=7", "AT_ONCE=4") + ours)

    @contextmanager
    def slides_held(self) -> Iterator[None]:
        """No slide begins, and then all that may, from a database that writes more slowly than the worker asks."""
        queue = "work_pools/slidesam/queues/slides"
        self.api(queue, {"is_paused": True}, "PATCH")
        yield
        with self.database_transaction("lock table flow_run_state in exclusive mode"):
            self.api(queue, {"is_paused": False}, "PATCH")
            time.sleep(5)


@contextmanager
def running_cluster(keys: Path) -> Iterator[str]:
    """The address of a cluster of two workers in processes of its own, as one that runs anyway has them."""
    code = (
        "import sys, pathlib; from slidesam.flows.cluster.cluster import LocalProfile, open_cluster\n"
        "with open_cluster(LocalProfile(workers=2)) as cluster:\n"
        "    pathlib.Path(sys.argv[1]).write_text(cluster.workers().security.tls_ca_file)\n"
        "    print(cluster.address, flush=True); sys.stdin.read()"
    )
    # Flows call the segmenters of the tests.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, keys], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with server_folder() as folder, running_cluster(folder / "keys.pem") as address:
        site = Site(folder)
        try:
            site.attached.write_text(
                yaml.safe_dump({"kind": "attach", "address": address, "ca_file": str(folder / "keys.pem")})
            )
            # Flows call the segmenters of the tests.
            site.start(PYTHONPATH=str(ROOT))
            inbox = site.deployment("inbox")
            quiet = {"parameters": inbox["parameters"] | {"quiet": f"{QUIET}s"}}
            site.api(f"deployments/{inbox['id']}", quiet, "PATCH")
            yield site
            assert site("stop").returncode == 0
            assert site.left() == []
        finally:
            site.kill()


@pytest.fixture(scope="module")
def arriving(site: Site) -> Iterator[Path]:
    """A slide that is copied into the inbox a bit at a time, while all else goes on."""
    source = write_numbered_slide(site.folder / "arriving.tif", 6, 6)
    data = source.read_bytes()
    target = site.inbox / "arriving.tif"

    def copy() -> None:
        with target.open("wb", buffering=0) as stream:
            # The longest pause is shorter than what counts as quiet.
            for start in range(0, len(data), len(data) // 12 + 1):
                stream.write(data[start : start + len(data) // 12 + 1])
                time.sleep(QUIET / 3)

    thread = threading.Thread(target=copy)
    thread.start()
    yield target
    thread.join()


@pytest.fixture(scope="module")
def killed(site: Site) -> Iterator[tuple[str, Path]]:
    """A slide's run whose process is killed while it segments, and its log; it comes back while all else goes on."""
    slide, log = write_numbered_slide(site.folder / "killed.tif", 6, 6), site.folder / "killed.log"
    # Its own workers die with it.
    run = site.begin("slide", slide=str(slide), settings=settings(log, seconds=0.5), cluster="local")

    def kill() -> None:
        until(lambda: blocks_done(log) >= 6, PATIENCE)
        for process in flow_processes(run):
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield run, log
    thread.join()


def truncated(path: Path) -> Path:
    whole = write_numbered_slide(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


@contextmanager
def looking_away(page) -> Iterator[None]:
    """Leaves a page alone for a while: one that shows what runs redraws itself all the time, and takes a core for it."""
    address = page.url
    page.goto("about:blank")
    yield
    page.goto(address)


def log_in(page, site: Site) -> str:
    """The address of the pages, once the browser may see them."""
    pages = f"http://127.0.0.1:{site.port}/v2"
    page.goto(f"{pages}/deployments")
    page.locator("input[type=password]").fill(f"slidesam:{site.password}")
    page.get_by_role("button", name="Login").click()
    page.get_by_role("link", name="slide", exact=True).first.wait_for()
    return pages


def test_a_slide_is_started_by_the_form_and_its_page_shows_the_result(
    arriving, killed, site, page, cmu1, tmp_path
) -> None:
    pages = log_in(page, site)
    page.get_by_role("link", name="slide", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("Custom run")).click()
    page.get_by_label("slide", exact=True).fill(str(cmu1))
    page.locator("button", has_text=re.compile("^micro-sam$")).click()
    page.get_by_role("option", name="watershed").click()
    page.get_by_label("Halo (px) (Optional)").fill("64")
    keep(page, "form", tmp_path)
    page.locator("button[type=submit]").click()
    page.get_by_role("link", name="View run").click()

    page.wait_for_url("**/runs/flow-run/**")
    run_id = re.search("flow-run/([0-9a-f-]+)", page.url)[1]
    with looking_away(page):
        run = site.ended(run_id)
    page.get_by_text("Completed").first.wait_for()
    assert run["name"] == "CMU-1-Small-Region · watershed"
    assert {"CMU-1-Small-Region", "watershed"} <= set(run["tags"])
    assert run["parameters"]["settings"]["segmenter"]["kind"] == "watershed"
    keep(page, "run", tmp_path)

    key = "cmu-1-small-region--cells"
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(f"{key}--progress").first.wait_for()
    keep(page, "artifacts", tmp_path)
    assert site.artifact(run_id, f"{key}--progress")["data"] == 100
    page.goto(f"{pages}/artifacts/artifact/{site.artifact(run_id, f'{key}--result')['id']}")
    picture = page.locator("img[src^='data:image/jpeg']")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 300
    facts = json.loads((site.results / "CMU-1-Small-Region.cells.run.json").read_text())
    page.get_by_text(f"{facts['objects']:,} cells").first.wait_for()
    assert facts["settings"]["blocks"]["halo"] == 64
    keep(page, "result", tmp_path)

    # One line per stage in its log, none per block.
    said = [line["message"] for line in site.api("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})]
    assert sum(line.startswith("segmenting blocks: ") for line in said) == 1
    assert not any("block 3" in line for line in said)


def test_a_cohort_ends_red_with_a_table_and_retry_runs_only_what_failed(site, page, tmp_path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("good", "flaky", "fine"):
        write_numbered_slide(scans / f"{name}.tif")
    bad = truncated(scans / "bad.tif")
    logs = {name: tmp_path / f"{name}.log" for name in ("good", "flaky", "fine", "bad")}
    manifest = scans / "cohort.csv"
    manifest.write_text(
        "path;segmenter.options\n"
        + "\n".join(
            f"{name}.tif;{{log: {log}{', fail_on: 5, times: 1' if name == 'flaky' else ''}}}"
            for name, log in logs.items()
        )
    )
    cohort = site.begin("cohort", slides=[str(manifest)], settings=settings(tmp_path / "unused"))
    ended = site.ended(cohort)
    assert ended["state"]["type"] == "FAILED"
    assert "1 of 4 slides failed (bad: bad.tif: truncated" in ended["state"]["message"]
    slides = site.tagged(f"cohort-{cohort}")
    states = {name: run["state"]["name"] for name, run in slides.items()}
    assert states == {"good": "Completed", "flaky": "Completed", "fine": "Completed", "bad": "Failed"}
    table = site.artifact(cohort, "slidesam-cohort")["data"]
    assert re.search(r"bad\]\(.*Failed.*truncated.*copy it again", table)
    assert all(re.search(rf"{name}\]\(.*\| Completed \| 9 \| 9 \|", table) for name in ("good", "flaky", "fine"))
    assert Counter(logs["flaky"].read_text().split()) == Counter(
        {str(k): 1 for k in range(1, 10)} | {"5": 2, "done": 9, "failed": 1}
    )

    # As long as its file is as it was, a retry is none.
    retry = site.ended(site.begin("retry-failed"))
    assert retry["state"]["type"] == "COMPLETED"
    assert "file hasn't changed" in site.artifact(retry["id"], "slidesam-retry-failed")["data"]
    assert site.run(slides["bad"]["id"])["run_count"] == 1

    write_numbered_slide(bad)
    pages = log_in(page, site)
    page.goto(f"{pages}/runs/flow-run/{cohort}")
    page.get_by_text("Failed").first.wait_for()
    keep(page, "cohort", tmp_path)
    page.locator("button[aria-haspopup=menu]").last.click()
    page.get_by_role("menuitem", name="Retry").click()
    page.get_by_role("button", name="Retry").click()
    until(lambda: site.run(cohort)["state"]["type"] != "FAILED", 60)
    with looking_away(page):
        assert site.ended(cohort, 2)["state"]["type"] == "COMPLETED"
    slides = site.tagged(f"cohort-{cohort}")
    assert {name: (run["state"]["name"], run["run_count"]) for name, run in slides.items()} == {
        "good": ("Completed", 1), "flaky": ("Completed", 1), "fine": ("Completed", 1), "bad": ("Completed", 2),
    }  # fmt: skip
    assert {name: blocks_done(log) for name, log in logs.items()} == dict.fromkeys(logs, 9)
    page.get_by_text("Completed").first.wait_for()
    keep(page, "cohort-retried", tmp_path)


def test_failed_slides_are_put_back_by_retry_failed_and_by_the_command(site, tmp_path) -> None:
    first, second = truncated(tmp_path / "first.tif"), truncated(tmp_path / "second.tif")
    log = tmp_path / "log"
    runs = {slide: site.begin("slide", slide=str(slide), settings=settings(log)) for slide in (first, second)}
    assert {site.ended(run)["state"]["type"] for run in runs.values()} == {"FAILED"}
    # Even where Prefect is asked, a file that is as it was isn't read once more.
    write_numbered_slide(first)
    done = site.ended(site.begin("retry-failed", days=1))
    assert done["state"]["type"] == "COMPLETED"
    assert site.ended(runs[first], 2)["state"]["type"] == "COMPLETED"
    assert site.run(runs[second])["run_count"] == 1

    retry = [Path(sys.executable).with_name("slidesam"), "retry", site.results]
    said = subprocess.run(
        retry, env=os.environ | site.environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert said.returncode == 1
    assert "second: not tried again, since its file hasn't changed: second.tif: truncated" in said.stdout
    write_numbered_slide(second)
    said = subprocess.run(
        retry, env=os.environ | site.environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "second: its run is put back" in said.stdout
    assert site.ended(runs[second], 2)["state"]["type"] == "COMPLETED"
    assert blocks_done(log) == 18


def flow_processes(run_id: str) -> list[int]:
    """The processes that run a flow."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in words[0] and b"prefect.engine" in words[1]:
            found.append(int(process.name))
    return found


def test_a_killed_slide_is_brought_back_and_nothing_is_computed_twice(site, killed) -> None:
    run, log = killed
    ended = site.ended(run, 2)
    assert ended["state"]["type"] == "COMPLETED"
    assert ended["run_count"] == 2
    states = [state["name"] for state in site.api(f"flow_run_states/?flow_run_id={run}")]
    assert "Crashed" in states
    assert "AwaitingRetry" in states
    # Two workers, so two blocks may have been under way.
    assert 36 <= blocks_done(log) <= 38
    # Its child flows tell the truth too.
    children = site.runs(parent_flow_run_id={"any_": [run]})
    assert {child["state"]["type"] for child in children} <= {"COMPLETED", "CRASHED"}


def test_many_slides_at_once_four_at_a_time(site, tmp_path) -> None:
    for number in range(MANY):
        write_numbered_slide(tmp_path / f"s{number:02d}.tif", 1, 1)
    began = time.monotonic()
    with site.slides_held():
        cohort = site.begin("cohort", slides=[str(tmp_path)], settings=settings(tmp_path / "log"))
        until(lambda: len(site.tagged(f"cohort-{cohort}")) == MANY, PATIENCE)
    most, slowest = 0, 0.0
    while site.run(cohort)["state"]["type"] not in ENDED:
        assert time.monotonic() - began < 90 + 30 * MANY
        asked = time.monotonic()
        running = site.runs(tags={"all_": [f"cohort-{cohort}"]}, state={"type": {"any_": ["RUNNING", "PENDING"]}})
        slowest = max(slowest, time.monotonic() - asked)
        most = max(most, len(running))
        time.sleep(1)
    seconds = time.monotonic() - began
    print(f"\n{MANY} slides in {seconds:.0f} s, at most {most} at once; slowest answer {slowest:.1f} s")
    ended = site.run(cohort)
    assert ended["state"]["type"] == "COMPLETED", (ended["state"]["message"], ended["run_count"])
    assert 1 < most <= 4, most
    # As long as anybody would wait for a page.
    assert slowest < 30
    slides = site.tagged(f"cohort-{cohort}")
    assert len(slides) == MANY
    # What the UI says is so.
    said = {name: (run["state"]["name"], run["run_count"], run["state"]["message"]) for name, run in slides.items()}
    assert {each[:2] for each in said.values()} == {("Completed", 1)}, said
    assert all(read_state(site.results, name, "cells").objects == 1 for name in slides)
    assert blocks_done(tmp_path / "log") == MANY
    left = site.runs(state={"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}})
    assert not [run["name"] for run in left if re.search(r"\bs\d\d\b", run["name"])]
    logs = "".join(path.read_text(errors="replace") for path in (site.data / "log").glob("*.log"))
    assert "database is locked" not in logs


def test_a_slide_that_arrives_slowly_is_started_once_and_whole(arriving, site) -> None:
    (run,) = until(lambda: site.runs(tags={"all_": ["inbox"]}), PATIENCE)
    assert run["name"].startswith("arriving · ")
    assert arriving.stat().st_size == (site.folder / "arriving.tif").stat().st_size
    began = run["created"]
    looks = lambda: [  # noqa: E731
        look
        for look in site.runs(
            deployment_id={"any_": [site.deployment("inbox")["id"]]}, state={"type": {"any_": ["COMPLETED"]}}
        )
        if look["end_time"] > began
    ]
    # Two more looks have started nothing.
    until(lambda: len(looks()) >= 2, PATIENCE)
    assert len(site.runs(tags={"all_": ["inbox"]})) == 1
