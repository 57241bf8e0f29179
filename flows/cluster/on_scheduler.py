"""Prepares a Dask scheduler (`--preload slidesam.flows.cluster.on_scheduler`): without web pages, or with pages behind a token.

Dask's scheduler always listens on a port for HTTP. TLS between the members doesn't cover it: anybody who reaches it reads names
of slides, paths, logs and profiles. Here that port is closed at once. If the dashboard is wanted, it listens on loopback only and
answers only those who know a random token: as with Jupyter, a link that holds the token puts it into a cookie. The link is
written to a file that only the user can read.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Any

import click
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.netutil import bind_sockets
from tornado.routing import Router
from tornado.web import Application, RequestHandler

from slidesam.flows.cluster.links import LOOPBACK, close_http
from slidesam.flows.cluster.secret_files import write_secret

# Dask's own routes but its proxy to the pages of workers, which have none.
_ROUTES = ["distributed.http.scheduler.info", "distributed.http.scheduler.json", "distributed.http.statics"]


@click.command()
@click.option("--link-file", type=click.Path(path_type=Path), help="Serve the dashboard, and write its link here.")
@click.option("--link-port", type=int, default=0, help="Port of the dashboard; 0, or one that is taken: any.")
@click.option("--count-file", type=click.Path(path_type=Path), help="Keep the number of workers here.")
def dask_setup(scheduler: Any, link_file: Path | None, link_port: int, count_file: Path | None) -> None:
    """Close the scheduler's HTTP port, and serve its dashboard to whoever knows a token, if it is asked for."""
    close_http(scheduler)
    # Without it a long run's memory grows: spans, one or more per task, are kept for ever.
    scheduler.extensions["spans"] = NoSpans()
    if count_file is not None:
        scheduler.add_plugin(_Count(count_file))
    if link_file is not None:
        _serve_dashboard(scheduler, link_file, link_port)


class NoSpans:
    """Stands in for Dask's extension that groups tasks by spans, which nothing here reads."""

    def observe_tasks(self, *_arguments: Any, **_options: Any) -> dict[Any, dict[str, Any]]:
        """Give no task a span."""
        return {}

    def heartbeat(self, *_arguments: Any) -> None:
        """Ignore what workers measured per span."""


def _serve_dashboard(scheduler: Any, link_file: Path, port: int) -> None:
    from distributed.dashboard.scheduler import connect
    from distributed.http.routing import RoutingApplication
    from distributed.http.utils import get_handlers
    from tornado.httpserver import HTTPServer

    token = secrets.token_urlsafe(32)
    application = RoutingApplication(get_handlers(server=scheduler, modules=_ROUTES, prefix="/"))
    server: Any = HTTPServer(Gate(application, token))
    try:
        sockets = bind_sockets(port, LOOPBACK)
    except OSError:
        sockets = bind_sockets(0, LOOPBACK)
    server.port = sockets[0].getsockname()[1]  # Dask asks each service for it
    connect(application, server, scheduler, prefix="/")
    server.add_sockets(sockets)
    # Both are closed with the scheduler.
    scheduler.http_application, scheduler.services["dashboard"] = application, server
    # Of a pool's earlier scheduler, which has ended.
    link_file.unlink(missing_ok=True)
    write_secret(link_file, f"http://{LOOPBACK}:{server.port}/status?token={token}\n")


class Gate(Router):
    """Passes requests with the token on to an application, and refuses all others.

    Args:
        application: The application.
        token: What a request has to show, as `?token=` or in a cookie.
    """

    def __init__(self, application: Application, token: str) -> None:
        self._application, self._refusals = application, Application()
        self._settings = {"cookie": f"slidesam-{secrets.token_hex(4)}", "token": token}

    def find_handler(self, request: Any, **options: Any) -> Any:
        """Return what answers a request."""
        cookie = request.cookies.get(self._settings["cookie"])
        if cookie is not None and _is_same(cookie.value, self._settings["token"]):
            return self._application.find_handler(request, **options)
        return self._refusals.get_handler_delegate(request, _SignIn, self._settings)


class _SignIn(RequestHandler):
    """Takes the token out of a link and into a cookie; without the token it says nothing but where the link is."""

    def initialize(self, cookie: str, token: str) -> None:
        self._cookie, self._token = cookie, token

    def prepare(self) -> None:
        if not _is_same(self.get_query_argument("token", ""), self._token):
            self.set_status(403)
            self.finish("`slidesam status OUTPUT`, or infra/interactive/cluster status, shows the link of this page.\n")
            return
        self.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict")
        self.redirect(self.request.path)


def _is_same(text: str, token: str) -> bool:
    return hmac.compare_digest(text.encode(), token.encode())


class _Count(SchedulerPlugin):
    """Keeps the number of workers in a file, for a shell script that would need seconds to ask for it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._write(0)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Count a worker that came."""
        self._write(len(scheduler.workers))

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Count without a worker that left."""
        self._write(len(scheduler.workers))

    def _write(self, count: int) -> None:
        self._file.write_text(f"{count}\n")
