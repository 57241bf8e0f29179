"""Provides a Prefect API for the command line: the configured one, or a server that runs as long as the command.

That is a real server process, never Prefect's ephemeral one, which each worker would start for itself, losing task runs. Its
database is the SQLite file in PREFECT_HOME, so the history stays and `prefect server start` shows it later.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from slidesam.tasks.errors import ServerError

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 120.0
_DRAIN_SECONDS = 10.0


@contextmanager
def prefect_api(host: str = _LOOPBACK) -> Iterator[str]:
    """Provide an API for Prefect: the configured one, or a server that this call starts.

    Args:
        host: Address of this machine for all clients. A new server listens there; unless it is loopback, where nobody else can
            reach it, it has a password, which workers get with their tasks.

    Yields:
        The API's URL.

    Raises:
        ServerError: The configured API doesn't answer, or a new server doesn't start.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        refuse_loopback(configured, host)
        if not _answers(configured):
            raise ServerError(
                f"the Prefect API at {configured} doesn't answer",
                "start it (`prefect server start`), or unset PREFECT_API_URL to run with a server of its own",
            )
        yield configured
        return
    password = "" if host == _LOOPBACK else f"slidesam:{secrets.token_urlsafe(24)}"
    url, process, log = _start(Path(PREFECT_HOME.value()), host, password)
    try:
        # What the runs need takes seconds to import: time in which the server starts.
        importlib.import_module("slidesam.flows.slide.segment_slide")
        _wait(url, process, log)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password or None}):
            try:
                yield url
            finally:
                _hand_over()
    finally:
        _stop(process)


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


def _start(home: Path, host: str, password: str) -> tuple[str, subprocess.Popen[bytes], Path]:
    """Start a server on a free port; its output goes to a log in PREFECT_HOME."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "slidesam-server.log"
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ServerError(
                f"{host} is no address of this machine, on which a Prefect server could listen"
            ) from error
        port = probe.getsockname()[1]
    url = f"http://{host}:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_server_environment(os.environ, home, url, password),
            # A separate session: Ctrl-C must reach the flow first, which then tells the server how it ended.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return url, process, log


def _server_environment(environment: Mapping[str, str], home: Path, url: str, password: str) -> dict[str, str]:
    locked = {"PREFECT_SERVER_API_AUTH_STRING": password} if password else {}
    return {
        **environment,
        **locked,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_API_URL": "",
        # By default the pages use the API at port 4200.
        "PREFECT_SERVER_UI_API_URL": url,
    }


def _die_with_parent() -> None:
    """Ask Linux to end the server when the command line is killed; on other systems it must be ended by hand."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(url):
        if process.poll() is not None:
            raise ServerError("the local Prefect server ended while starting", f"see {log}")
        if time.monotonic() > deadline:
            raise ServerError(f"the local Prefect server didn't start within {_START_SECONDS:.0f} s", f"see {log}")
        time.sleep(0.1)


def _hand_over() -> None:
    """Send the logs and events that still wait in this process, while the server is up."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
    APILogHandler().flush()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and wants the auth string that Prefect's client sends
    except (OSError, ValueError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
