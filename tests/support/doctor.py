"""What tests of `slidesam doctor` share: a stand-in for a Prefect API, and findings by name."""

from __future__ import annotations

import base64
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from slidesam.flows.cluster.find_profile import load_profile
from slidesam.flows.doctor.finding import Finding


@contextmanager
def api(let_in: Collection[str] = (), password: str = "", host: str = "127.0.0.1") -> Iterator[str]:
    """What answers like a Prefect API, to these addresses only, as behind a firewall; to all if none is named."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = f"Basic {base64.b64encode(password.encode()).decode()}" if password else None
            allowed = self.path.endswith("/health") or self.headers["Authorization"] == wanted
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(b'"3.8.8"' if self.path.endswith("version") else b"true")

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def verify_request(self, request, client_address) -> bool:
            return not let_in or client_address[0] in let_in

    with Server((host, 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{host}:{server.server_port}/api"
        server.shutdown()
        thread.join()


@contextmanager
def configured(url: str | None, password: str | None = None) -> Iterator[None]:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}):
        yield


def named(findings: list[Finding]) -> dict[str, Finding]:
    """By name; what is wrong says what to do."""
    assert all(each.cure for each in findings if each.state in ("warning", "failed"))
    assert len({each.name for each in findings}) == len(findings)
    return {each.name: each for each in findings}


def local():
    return load_profile("local", {"workers": 1})
