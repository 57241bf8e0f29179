"""Another user of the host, and whoever reaches a network that slidesam listens on: nothing of Dask answers them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from slidesam.flows.cluster.cluster import Cluster, LocalProfile, open_cluster
from tests.support.intruder import listening, what_an_intruder_gets
from tests.support.other_user import as_other_user, needs_root
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slurm_fixtures import profile

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]


def own_processes() -> set[int]:
    """This process and all below it."""
    return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}


@pytest.fixture(scope="module")
def before() -> set[tuple[str, int]]:
    """What this process listened at before: other tests' servers."""
    return listening(own_processes())


@pytest.fixture(scope="module")
def cluster(before: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(LocalProfile(workers=1, dashboard=True), tmp_path_factory.mktemp("jobs")) as opened:
        opened.workers()
        yield opened


@pytest.fixture(scope="module")
def addresses(cluster: Cluster, before: set[tuple[str, int]]) -> set[tuple[str, int]]:
    return listening(own_processes()) - before


def test_local_workers_listen_on_loopback_only(addresses: set[tuple[str, int]]) -> None:
    """Scheduler, nanny, worker, and the dashboard that was asked for."""
    assert {host for host, _ in addresses} == {"127.0.0.1"}
    assert len(addresses) == 4


@needs_root
def test_another_user_of_the_host_gets_nothing_out_of_local_workers(addresses: set[tuple[str, int]]) -> None:
    assert what_an_intruder_gets(addresses) == {}


def test_the_owner_s_client_is_let_in(cluster: Cluster) -> None:
    with cluster.workers().connect() as client:
        assert client.submit(os.getuid).result(60) == os.getuid()


def fetch(url: str, cookie: str = "") -> tuple[int, str, Any]:
    """Status, body and headers of a page, without following where it leads."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request("GET", f"{parts.path}?{parts.query}", headers={"Cookie": cookie})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_dashboard_answers_who_has_the_link(cluster: Cluster) -> None:
    pytest.importorskip("bokeh")
    (file,) = cluster.logs.glob("*.keys/cpu.link")
    assert file.stat().st_mode & 0o77 == file.parent.stat().st_mode & 0o77 == 0
    link, page = file.read_text().strip(), cluster.dashboards["cpu"]
    assert link.startswith(f"{page}?token=")
    assert fetch(page)[0] == fetch(f"{page}?token=wrong")[0] == fetch(page, "slidesam=1")[0] == 403
    status, _, headers = fetch(link)
    assert (status, headers["Location"]) == (302, "/status")
    assert "HttpOnly" in headers["Set-Cookie"]
    status, body, _ = fetch(page, headers["Set-Cookie"].partition(";")[0])
    assert status == 200
    assert "Dask" in body


@needs_root
@pytest.mark.slow
@pytest.mark.slurm
def test_on_slurm_s_nodes_nobody_else_gets_in(shared_slurm: None, tmp_path: Path) -> None:
    """A job on node1 and its scheduler here, and another user on node2."""
    directives = ["--nodelist=node1"]
    where = profile("slurm-cpu", cpu__minimum_jobs=1, cpu__maximum_jobs=1, cpu__directives=directives, dashboard=True)
    before = listening(own_processes())
    with open_cluster(where, tmp_path / "jobs") as cluster, cluster.workers().connect() as client:
        client.wait_for_workers(1, timeout=120)
        ((at_worker, pids),) = client.run(look_around).values()
        here = listening(own_processes()) - before
        # The scheduler, and its dashboard on loopback; the worker and its nanny.
        assert {host for host, _ in here} == {"10.177.0.1", "127.0.0.1"}
        assert [host for host, _ in at_worker] == ["10.177.0.11"] * 2
        seen = {(host, port) for host, port in at_worker}
        assert what_an_intruder_gets(here | seen, ["ip", "netns", "exec", "slidesam-node2"]) == {}
        assert what_an_intruder_gets(here | seen) == {}
        (keys,) = (tmp_path / "jobs").glob("*.keys/keys.pem")
        key = keys.read_text().splitlines()[-2]
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
        script = subprocess.run(
            ["scontrol", "write", "batch_script", job_id(cluster), "-"], capture_output=True, text=True, check=True
        ).stdout
        assert str(keys) in script
        for text in (script, *commands):
            assert key not in text
        with as_other_user():
            for path in (keys, *(Path(f"/proc/{pid}/environ") for pid in pids)):
                with pytest.raises(PermissionError):
                    path.read_text()
    assert not keys.parent.exists()


def look_around() -> tuple[list[tuple[str, int]], list[int]]:
    """Where this worker and its nanny listen, and their processes."""
    import os

    import psutil

    pids = [os.getpid(), os.getppid()]
    connections = [each for pid in pids for each in psutil.Process(pid).net_connections("inet")]
    return sorted(tuple(each.laddr) for each in connections if each.status == "LISTEN"), pids


def job_id(cluster: Cluster) -> str:
    """The number of the only job of a cluster."""
    (job,) = cluster.workers().keeper.cluster.workers.values()
    return str(job.job_id)
