"""The server that a command starts for itself: for its owner alone, and started again if it ends. One server for all tests."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path

import pytest

from slidesam.flows.prefect_api import own_server
from slidesam.flows.prefect_api import server as server_module
from slidesam.flows.prefect_api.own_server import OwnServer
from slidesam.flows.signals import interrupts
from slidesam.tasks.errors import ServerError
from slidesam.tasks.run.owner import Owner
from tests.support.other_user import as_other_user, needs_root, open_folder

PASSWORD = "slidesam:a-password-of-a-test"


@pytest.fixture(scope="module")
def server(made_database: Path) -> Iterator[OwnServer]:
    with open_folder() as folder:
        home = folder / "home"
        home.mkdir(mode=0o755)
        (home / "prefect.db").touch(mode=0o644)
        if made_database.exists():
            (home / "prefect.db").write_bytes(made_database.read_bytes())
        # The command is called in a folder that others have filled.
        for name in ("slidesam", "prefect", "uvicorn", "dask"):
            (folder / f"{name}.py").write_text(f"open({str(folder / 'imported')!r}, 'w')\nraise ImportError")
        with chdir(folder):
            server = OwnServer(home, "127.0.0.1", PASSWORD)
            server.__enter__()
        with ExitStack() as ends:
            ends.push(server.__exit__)
            server.wait_until_ready()
            yield server
            port = int(server.url.rpartition(":")[2].partition("/")[0])
        assert not server.login.exists()
        assert not (folder / "imported").exists()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def call(server: OwnServer, path: str, body: object = None, *, password: str = PASSWORD, **headers: str):
    """Ask the server; return headers and content of its answer."""
    login = {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"} if password else {}
    request = urllib.request.Request(
        f"{server.url}/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **login, **headers},
        method=headers.get("Method"),
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers, json.loads(answer.read() or b"null")


def test_its_owner_can_use_it_and_its_pages(server: OwnServer) -> None:
    assert call(server, "admin/version")[1]
    with urllib.request.urlopen(f"{server.url.removesuffix('api')}ui-settings", timeout=60) as answer:
        assert json.loads(answer.read())["auth"] == "BASIC"
    assert server.login.read_text() == f"{PASSWORD}\n"


REQUESTS = [
    ("GET", "admin/settings", None),
    ("POST", "flow_runs/filter", {}),
    ("POST", "flows/", {"name": "mine"}),
    ("POST", "block_documents/filter", {"include_secrets": True}),
    ("POST", "variables/", {"name": "a", "value": "b"}),
    ("POST", "admin/database/clear", {"confirm": True}),
    ("GET", "admin/database/../settings", None),
]


@needs_root
def test_another_user_can_neither_read_nor_change_nor_see_secrets(server: OwnServer) -> None:
    with as_other_user():
        for password in ("", "slidesam:", "slidesam:wrong"):
            for method, path, body in REQUESTS:
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    call(server, path, body, password=password, Method=method)


@needs_root
def test_another_user_cannot_listen_to_events_or_logs(server: OwnServer) -> None:
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    def listen(path: str, token: str | None) -> str:
        with connect(f"ws{server.url.removeprefix('http')}/{path}", subprotocols=["prefect"]) as stream:
            stream.send(json.dumps({"type": "auth", "token": token}))
            stream.send(json.dumps({"type": "filter", "filter": {}}))
            return str(stream.recv(timeout=20))

    for path in ("events/in", "events/out", "logs/out"):
        assert "auth_success" in listen(path, PASSWORD)
        for token in (None, "slidesam:wrong"):
            with pytest.raises((ConnectionClosed, InvalidStatus)):
                listen(path, token)


def test_pages_of_other_web_sites_may_not_ask(server: OwnServer) -> None:
    def allowed(origin: str) -> str | None:
        return call(
            server, "flow_runs/filter", Origin=origin, Method="OPTIONS", **{"Access-Control-Request-Method": "POST"}
        )[0]["Access-Control-Allow-Origin"]

    own = server.url.removesuffix("/api")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        allowed("http://evil.example")
    assert allowed_of_get(server, "http://evil.example") is None
    assert allowed_of_get(server, own) == own


def allowed_of_get(server: OwnServer, origin: str) -> str | None:
    return call(server, "admin/version", Origin=origin)[0]["Access-Control-Allow-Origin"]


@needs_root
def test_another_user_can_read_neither_files_nor_the_password(server: OwnServer) -> None:
    files = list(server.log.parent.iterdir())
    assert {"prefect.db", "slidesam-server.log", server.login.name} <= {file.name for file in files}
    assert {
        file.name: oct(stat.S_IMODE(file.stat().st_mode) & 0o077) for file in files if file.is_file()
    } == dict.fromkeys([file.name for file in files if file.is_file()], "0o0")
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.exists()]
    assert not any(PASSWORD.encode() in command for command in commands)
    with as_other_user(), pytest.raises(PermissionError):
        Path(f"/proc/{server._process.pid}/environ").read_bytes()


FETCH = """async ([url, headers]) => {
    try { return (await fetch(url, {method: "POST", body: "{}", headers})).status } catch (error) { return error.name }
}"""


def test_a_browser_logs_in_with_the_password_and_other_sites_get_nothing(server: OwnServer, page) -> None:
    page.goto(server.url.removesuffix("/api"))
    field = page.locator("input").first
    field.fill(server.login.read_text().strip())
    field.press("Enter")
    page.get_by_role("link", name="Runs").or_(page.get_by_text("Runs", exact=True)).first.wait_for()
    assert "login" not in page.url
    login = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
    headers = {"Content-Type": "application/json", "Authorization": login}
    assert page.evaluate(FETCH, [f"{server.url}/flow_runs/filter", headers]) == 200
    # A page of another site, which is open beside it: without what the browser knows, and with headers of its own.
    page.route("http://127.0.0.1:1234/**", lambda route: route.fulfill(body="<p>evil</p>", content_type="text/html"))
    page.goto("http://127.0.0.1:1234/")
    # Not even with the password may it read the answer.
    for own_headers in ({}, {"Content-Type": "application/json"}, headers):
        assert page.evaluate(FETCH, [f"{server.url}/flow_runs/filter", own_headers]) == "TypeError"


def test_a_new_home_is_its_owners(tmp_path: Path) -> None:
    own_server._make_private(tmp_path / "a" / "home")
    assert stat.S_IMODE((tmp_path / "a" / "home").stat().st_mode) == 0o700


def test_it_is_started_again_on_its_port_and_database_while_requests_wait(server: OwnServer) -> None:
    flow = call(server, "flows/", {"name": "before"})[1]
    first = server._process.pid
    os.kill(first, signal.SIGKILL)
    # Meanwhile nobody else can take the port, and with it the password of whoever asks.
    address = ("127.0.0.1", int(server.url.rpartition(":")[2].partition("/")[0]))
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="already in use"):
            thief.bind(address)
    assert call(server, f"flows/{flow['id']}")[1]["name"] == "before"
    assert server._process.pid != first


def test_a_server_that_cannot_be_started_again_ends_the_run_at_once(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test with this server."""
    monkeypatch.setattr(own_server, "_MOST_ENDS", len(server._ends))
    os.kill(server._process.pid, signal.SIGKILL)
    with interrupts(), pytest.raises(KeyboardInterrupt):
        time.sleep(60)
    assert server.is_lost
    with pytest.raises(urllib.error.HTTPError, match="410"):
        call(server, "flow_runs/filter", {})
    assert call(server, "logs/", [])[1] is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ServerError("Gone"), None])
def test_the_loss_is_told_in_one_sentence(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the run makes of the requests that were refused."""

    class Lost:
        url, login, log, is_lost = "http://127.0.0.1:1/api", "login", "log", False
        wait_until_ready = staticmethod(lambda: None)
        lost_error = classmethod(OwnServer.lost_error)

    @contextmanager
    def start(*_: object):
        yield Lost

    monkeypatch.setattr(server_module, "OwnServer", start)
    monkeypatch.setattr(server_module, "hand_over", lambda: pytest.fail("nobody is there"))
    notes: list[str] = []
    ends = server_module.prefect_api(note=notes.append)
    ends.__enter__()
    Lost.is_lost = True
    with pytest.raises(ServerError, match=r"ended and can't be started again: see log; .*run the same command again"):
        ends.__exit__(None if error is None else type(error), error, None)
    assert notes == ["http://127.0.0.1:1 (while this runs; its password is in login)"]


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ServerError, match=r"file/home, where Prefect keeps its history, can't be written \(Not a directory\)"
    ):
        OwnServer(tmp_path / "file" / "home", "127.0.0.1", PASSWORD)
    (tmp_path / "home" / "slidesam-server.log").mkdir(parents=True)
    server = OwnServer(tmp_path / "home", "127.0.0.1", PASSWORD)
    with pytest.raises(ServerError, match=r"can't be written \(Is a directory\): set PREFECT_HOME to another folder"):
        server.__enter__()
    assert not server.login.exists()


def test_the_next_server_removes_the_password_of_a_command_that_was_killed_and_no_other(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom slidesam.flows.prefect_api.own_server import OwnServer\n"
        "OwnServer._launch = lambda self, mode: os._exit(9)\nOwnServer(Path(sys.argv[1]), '127.0.0.1', 'x:y').__enter__()"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == 9
    assert len(list(tmp_path.glob("slidesam-server-*.login"))) == 1
    living = tmp_path / "slidesam-server-1.login"
    living.write_text("x:y")
    living.with_name("slidesam-server-1.login.owner.json").write_text(Owner.this_process("").model_dump_json())
    own_server._make_private(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, f"{living.name}.owner.json"]


def test_passwords_of_commands_that_were_killed_long_ago_on_any_machine_go(tmp_path: Path) -> None:
    old, new = tmp_path / "slidesam-server-1.login", tmp_path / "slidesam-server-2.login"
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (0, 0))
    own_server._make_private(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1 is no address of this machine"):
        OwnServer(tmp_path, "192.0.2.1", PASSWORD)


def test_an_address_of_ipv6_is_taken(tmp_path: Path) -> None:
    server = OwnServer(tmp_path, "::1", PASSWORD)
    with server._socket as bound, socket.create_connection(("::1", bound.getsockname()[1]), timeout=10):
        assert server.url == f"http://[::1]:{bound.getsockname()[1]}/api"


def test_a_server_that_cannot_be_started_again_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OwnServer(tmp_path, "127.0.0.1", PASSWORD)

    def launch(mode: str) -> None:
        raise BlockingIOError("no process can be made")

    monkeypatch.setattr(server, "_launch", launch)
    with server._socket:
        assert not server._restart()


@pytest.mark.parametrize("existing", ["", "example.org", "*"])
def test_no_proxy_is_told_the_password(existing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", existing)
    monkeypatch.setenv("NO_PROXY", existing)
    if existing != "*":
        assert not urllib.request.proxy_bypass("10.0.0.7")
    for _ in range(2):
        own_server._bypass_proxies("10.0.0.7")
    assert urllib.request.proxy_bypass("10.0.0.7")
    expected = {"": "10.0.0.7", "example.org": "example.org,10.0.0.7", "*": "*"}[existing]
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected
