"""infra/prefect-server on this machine: a real PostgreSQL, a real Prefect server, a real worker."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from slidesam.tasks.errors import ServerError, SettingsError
from tests.support import ROOT
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.prefect_server_fixtures import HAS_POSTGRES, SCRIPT, Server, can_listen, free_port, server_folder
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import until

PARTS = ("database", "server", "worker")
DEPLOYED = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]

pytestmark = [
    *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS),
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_POSTGRES, reason="PostgreSQL isn't here: `infra/prefect-server/prefect-server install` as root"
    ),
]


def start_slide(server: Server, slide: Path, output: Path) -> str:
    """A run of the deployment `slide`, as the form in the UI makes it."""
    named = {"deployments": {"name": {"any_": ["slide"]}}}
    deployment = server.api("deployments/filter", named)[0]
    parameters = {
        "slide": str(slide),
        "output": str(output),
        "settings": {"segmenter": {"kind": "watershed"}, "blocks": {"block_shape": [64, 64], "halo": 16}},
        "cluster": "local",
    }
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return server.api(f"deployments/{deployment['id']}/create_flow_run", body)["id"]


def ended(server: Server, run: str) -> dict | None:
    """The state of a flow run that has ended."""
    state = server.api(f"flow_runs/{run}")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_folder() as folder:
        server = Server(folder)
        try:
            assert server("status").returncode == 3
            # As root the units' user can't write where slidesam is installed either.
            server.start_without_writing_its_code() if os.geteuid() == 0 else server.start()
            yield server
            # In their order: what the tests below leave behind is stopped here, twice.
            for _ in range(2):
                done = server("stop")
                assert done.returncode == 0, done.stdout + done.stderr
                assert server.left() == []
                assert can_listen(server.port)
                assert can_listen(server.database_port)
            assert server("status").returncode == 3
        finally:
            server.kill()


def test_a_password_is_wanted(server: Server):
    assert server.api("admin/version")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.api("admin/version", password="wrong")
    assert stat.S_IMODE((server.data / "server.password").stat().st_mode) == 0o600
    # Nor may pages of other web sites read what it answers.
    for origin in ("http://evil.example", f"http://127.0.0.1:{server.port}"):
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/api/health", headers={"Origin": origin})
        with urllib.request.urlopen(request, timeout=30) as answer:
            allowed = answer.headers["Access-Control-Allow-Origin"]
        assert allowed == (None if "evil" in origin else origin)
    said = server("status")
    assert said.returncode == 0
    assert server.password not in said.stdout
    assert server.password in server("status", "--show-password").stdout


def test_it_has_pages_wherever_it_is_installed_and_status_says_so_if_not(server: Server):
    page = urllib.request.Request(f"http://127.0.0.1:{server.port}/", headers={"Accept": "text/html"})
    with urllib.request.urlopen(page, timeout=30) as answer:
        assert b"<div id=" in answer.read()
    assert server("status").returncode == 0
    # Gone while it runs, as with a Prefect that couldn't write them.
    folder = server.data / "ui"
    folder.rename(folder.with_name("gone"))
    said = server("status")
    folder.with_name("gone").rename(folder)
    assert said.returncode == 1
    assert f"the server at http://127.0.0.1:{server.port} has no pages for a browser" in said.stderr


def test_pool_queue_deployments_and_automations_are_there_once(server: Server):
    assert [pool["name"] for pool in server.api("work_pools/filter", {})] == ["slidesam"]
    queues = {
        queue["name"]: queue["concurrency_limit"] for queue in server.api("work_pools/slidesam/queues/filter", {})
    }
    assert queues == {"default": None, "slides": 7}
    deployments = {deployment["name"]: deployment for deployment in server.api("deployments/filter", {})}
    assert deployments.keys() == {one["name"] for one in DEPLOYED} >= {"slide", "cohort", "inbox", "retry-failed"}
    assert {name for name, one in deployments.items() if one["work_queue_name"] == "slides"} == {"slide"}
    assert {schedule["schedule"]["timezone"] for one in deployments.values() for schedule in one["schedules"]} == {
        "Asia/Tokyo"
    }
    # No folder to look into was set.
    assert [schedule["active"] for schedule in deployments["inbox"]["schedules"]] == [False]
    names = [automation["name"] for automation in server.api("automations/filter", {})]
    # And nobody to notify.
    assert sorted(names) == [
        "slidesam: crashed runs go on",
        "slidesam: runs that never began are started again",
        "slidesam: silent runs are dead",
    ]


def test_automations_are_replaced_by_name_and_notify_whom_they_are_told(server: Server):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from slidesam.flows.prefect_api.automations import apply_automations

    file = ROOT / "deployments" / "automations.yaml"
    here = {
        PREFECT_API_URL: f"http://127.0.0.1:{server.port}/api",
        PREFECT_API_AUTH_STRING: f"slidesam:{server.password}",
    }
    with temporary_settings(here):
        done = apply_automations(file, "http://127.0.0.1:9/hook")
        assert sorted(done.values()) == ["created"] * 4 + ["unchanged"] * 3
        ids = {automation["id"] for automation in server.api("automations/filter", {})}
        assert set(apply_automations(file, "custom-webhook/slidesam").values()) == {"unchanged"}
        assert {automation["id"] for automation in server.api("automations/filter", {})} == ids
        with pytest.raises(SettingsError, match="no-such/block"):
            apply_automations(file, "no-such/block")
        assert list(apply_automations(file).values()).count("removed: nobody to notify") == 4
    with (
        temporary_settings(here | {PREFECT_API_AUTH_STRING: "slidesam:wrong"}),
        pytest.raises(ServerError, match="wants"),
    ):
        apply_automations(file)


def test_started_again_nothing_changes(server: Server):
    pids, password = server.pids(), server.password
    assert pids.keys() == set(PARTS)
    server.start()
    assert server.pids() == pids
    assert server.password == password


def test_other_addresses_are_refused(server: Server):
    done = server("start", SLIDESAM_SERVER_PORT=str(free_port()))
    assert done.returncode == 1
    assert "another address" in done.stderr
    assert server.pids().keys() == set(PARTS)


def test_a_slide_runs_and_after_kill_minus_nine_of_everything_it_is_still_there(server: Server, tmp_path: Path):
    slide = write_numbered_slide(tmp_path / "numbers.tif")
    run = start_slide(server, slide, tmp_path / "results")
    state = until(lambda: ended(server, run), 120)
    assert state["type"] == "COMPLETED", state
    assert (tmp_path / "results" / "numbers.cells.run.json").exists()

    password = server.password
    server.kill()
    assert (server.data / "database" / "postmaster.pid").exists()
    server.start()
    assert server.password == password
    assert server.pids().keys() == set(PARTS)
    assert ended(server, run)["type"] == "COMPLETED"


def test_what_was_set_in_the_ui_stays_and_what_changes_is_said(server: Server):
    def named(name: str) -> dict:
        return next(each for each in server.api("deployments/filter", {}) if each["name"] == name)

    inbox, clean, slide = named("inbox"), named("clean"), named("slide")
    # As an earlier version made it: after a crash that kept its one slot, every look was cancelled.
    server.api(f"deployments/{inbox['id']}", {"concurrency_limit": 1}, "PATCH")
    assert named("inbox")["global_concurrency_limit"]["limit"] == 1
    server.api(f"deployments/{inbox['id']}", {"parameters": inbox["parameters"] | {"quiet": "9m"}}, "PATCH")
    server.api(f"deployments/{slide['id']}", {"paused": True}, "PATCH")
    server.api(f"deployments/{clean['id']}/schedules/{clean['schedules'][0]['id']}", {"active": False}, "PATCH")
    site_settings = server.data.parent / "site.yaml"
    site_settings.write_text("segmenter: {kind: watershed}\n")
    done = server("deploy", SLIDESAM_SETTINGS=str(site_settings), SLIDESAM_CLUSTER="local-gpu")
    assert done.returncode == 0, done.stderr
    assert named("inbox")["global_concurrency_limit"] is None
    chosen = {"quiet": "9m", "cluster": "local-gpu", "settings": {"segmenter": {"kind": "watershed"}}}
    assert named("inbox")["parameters"] == inbox["parameters"] | chosen
    assert named("slide")["paused"]
    assert [schedule["active"] for schedule in named("clean")["schedules"]] == [False]
    assert 'deployment inbox: quiet stays "9m", as it was set in the UI' in done.stdout
    assert 'deployment inbox: cluster is "local-gpu" now; it was "local"' in done.stdout
    site_settings.write_text("segmenter: {kind: wartershed}\n")
    done = server("deploy", SLIDESAM_SETTINGS=str(site_settings))
    assert done.returncode == 1
    assert "SLIDESAM_SETTINGS: setting segmenter.kind: must be one of" in done.stderr


def test_a_taken_port_is_named(tmp_path: Path):
    other = Server(tmp_path)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = other("start", SLIDESAM_DATABASE_PORT=str(port))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert "SLIDESAM_DATABASE_PORT" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SLIDESAM_SERVER_PORT=many", "SLIDESAM_SERVER_PORT must be a number"),
        ("just words", "line 2"),
        ("PATH=/", "no setting"),
        ("SLIDESAM_OUTPUT=results", "SLIDESAM_OUTPUT must be a whole path"),
        ("SLIDESAM_SETTINGS=/no/such.yaml", "SLIDESAM_SETTINGS: there is no file /no/such.yaml"),
        ("SLIDESAM_TIMEZONE=Berlin", "SLIDESAM_TIMEZONE: 'Berlin' is no time zone"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, said: str):
    (tmp_path / "server.env").write_text(f"# settings\n{line}\n")
    for environment in ({}, {"PYTHONSAFEPATH": "1"}):
        done = subprocess.run(
            [SCRIPT, "--config", tmp_path / "server.env", "status"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr


def test_a_database_whose_password_is_lost_gets_the_new_one():
    """As units start: the database in the foreground, while the server already asks for the password."""
    with server_folder() as folder:
        server = Server(folder)
        try:
            for _ in range(2):
                with server.part("database"):
                    until(lambda: server.can_log_in(), 60)
                (server.data / "database.password").write_text("")
        finally:
            server.kill()
