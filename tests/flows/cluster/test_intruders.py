"""Another user of the host, and whoever reaches a network that slidesam listens on: nothing of Dask answers them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from slidesam.flows.cluster.cluster import Cluster, LocalProfile, open_cluster
from tests.support.other_user import needs_root, run_python_as_other_user
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
# Every way to make a Dask server run a function, or tell what it does: without TLS, and with a key of the intruder's own.
INTRUDER = """
from slidesam.flows.cluster.keys import make_keys, make_security
own = make_security(make_keys())
own.get_connection_args("client")

async def ask(address, connection):
    comm = await asyncio.wait_for(connect(address, timeout=3, **connection), 5)
    await comm.write({"op": "run" if sys.argv[1] == "worker" else "identity", "reply": True})
    return repr(await asyncio.wait_for(comm.read(), 5))

def plain_http(host, port, path):
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n".encode())
        return sock.makefile("rb").read(4000).decode("latin1")

found = {}
for text in sys.argv[2:]:
    host, _, port = text.rpartition(":")
    for name, address, connection in (
        ("tcp", f"tcp://{host}:{port}", {}),
        ("tls", f"tls://{host}:{port}", own.get_connection_args("client")),
    ):
        try:
            found[f"{name} {text}"] = asyncio.run(ask(address, connection))
        except (OSError, asyncio.TimeoutError, CommClosedError):
            pass
    for path in ("/status", "/info/main/workers.html", "/json/identity.json", "/metrics", "/sitemap.json"):
        try:
            answer = plain_http(host, int(port), path)
        except OSError:
            continue
        if answer and not answer.startswith("HTTP/1.1 403"):
            found[f"{path} {text}"] = answer
print(json.dumps(found))
"""
IMPORTS = """
import cryptography.x509, cryptography.hazmat.primitives.serialization, cryptography.hazmat.primitives.asymmetric.ec
import distributed, distributed.comm.tcp, slidesam.flows.cluster.keys
from distributed.comm import connect
from distributed.core import CommClosedError
"""


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports at which processes listen."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }


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
    assert (
        run_python_as_other_user(INTRUDER, "local", *(f"{host}:{port}" for host, port in addresses), imports=IMPORTS)
        == {}
    )


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
