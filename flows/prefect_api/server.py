"""Provides a Prefect API for the command line: the configured one, or a server that runs as long as the command.

That is a real server process, never Prefect's ephemeral one, which each worker would start for itself, losing task runs. Its
database is the SQLite file in PREFECT_HOME, so the history stays and `prefect server start` shows it later.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from slidesam.flows.prefect_api.own_server import OwnServer, answers
from slidesam.tasks.errors import ServerError

_LOOPBACK = "127.0.0.1"
_DRAIN_SECONDS = 10.0


@contextmanager
def prefect_api(host: str = _LOOPBACK, note: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Provide an API for Prefect: the configured one, or a server that this call starts.

    Args:
        host: Address of this machine for all clients. A new server listens there, with a random password, which workers get
            with their tasks.
        note: Called with the address of a new server's pages, and where the password for them is.

    Yields:
        The API's URL.

    Raises:
        ServerError: The configured API doesn't answer, or a new server doesn't start, or ends and can't be started again.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        refuse_loopback(configured, host)
        if not answers(configured):
            raise ServerError(
                f"the Prefect API at {configured} doesn't answer",
                "start it (`prefect server start`), or unset PREFECT_API_URL to run with a server of its own",
            )
        yield configured
        return
    password = f"slidesam:{secrets.token_urlsafe(24)}"
    with OwnServer(Path(PREFECT_HOME.value()), host, password) as server:
        # What the runs need takes seconds to import: time in which the server starts.
        importlib.import_module("slidesam.flows.slide.segment_slide")
        server.wait_until_ready()
        note(f"{server.url.removesuffix('/api')} (while this runs; its password is in {server.login})")
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: password}):
            try:
                yield server.url
            except (Exception, KeyboardInterrupt):
                if server.is_lost:
                    raise server.lost_error() from None
                raise
            finally:
                if not server.is_lost:
                    hand_over()
        if server.is_lost:
            raise server.lost_error()


def is_api_configured() -> bool:
    """Tell whether Prefect's settings name an API."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


def refuse_loopback(url: str, host: str) -> None:
    """Refuse a loopback address where workers are on other machines: they would talk to themselves, and record nothing.

    Args:
        url: The configured API.
        host: Address of this machine for the workers.

    Raises:
        ServerError: Workers on other machines can't reach the API.
    """
    api_host = urlsplit(url).hostname or ""
    if host != _LOOPBACK and (api_host == "localhost" or api_host.startswith("127.") or api_host == "::1"):
        raise ServerError(
            f"jobs on other nodes can't reach the Prefect API at {url}",
            f"start the server with `--host {host}` and set "
            f"PREFECT_API_URL=http://{host}:4200/api, or unset it to run with a server of its own",
        )


def hand_over() -> None:
    """Send the logs and events that still wait in this process, while the server is up."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
    APILogHandler().flush()
