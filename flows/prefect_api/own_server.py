"""A Prefect server that belongs to a command: on one address, with a password, started again if it ends too early.

The database is the SQLite file in PREFECT_HOME. What is written there only the user can read.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from slidesam.tasks.errors import ServerError
from slidesam.tasks.run.owner import Owner, has_owner_ended

_START_SECONDS, _RESTART_SECONDS = 120.0, 25.0
# A server that ends more often than so many times in so many seconds isn't started again.
_MOST_ENDS, _ENDS_SECONDS = 3, 300.0
_LOGIN_SECONDS, _OWNER = 30 * 86400.0, ".owner.json"


class OwnServer:
    """A Prefect server of this process; used as a context, it ends with it.

    Args:
        home: PREFECT_HOME, with the database.
        host: Address of this machine on which the server listens.
        password: What clients log in with, as `user:password`; empty = nothing (for tests).

    Attributes:
        url: The API's URL.
        log: What the server prints.
        login: File with the password, for those who may read it.
        is_lost: Whether the server ended and can't be started again. Then the main thread is interrupted.

    Raises:
        ServerError: It can't listen on this address, or PREFECT_HOME can't be written.
    """

    def __init__(self, home: Path, host: str, password: str) -> None:
        home = home.absolute()
        try:
            _make_private(home)
        except OSError as error:
            raise _make_home_error(home, error) from error
        self._home, self._host, self._password, self.is_lost = home, host, password, False
        try:
            self._socket = _bind(host)
        except OSError as error:
            raise ServerError(
                f"{host} is no address of this machine, on which a Prefect server could listen"
            ) from error
        self._socket.listen(1024)
        port = self._socket.getsockname()[1]
        address = f"[{host}]" if ":" in host else host
        self.url, self.log = f"http://{address}:{port}/api", home / "slidesam-server.log"
        self.login = home / f"slidesam-server-{port}.login"
        self._closing = threading.Event()
        self._stand_in: ThreadingHTTPServer | None = None
        self._ends: list[float] = []
        self._process: subprocess.Popen[bytes]
        self._watcher = threading.Thread(target=self._watch, name="Prefect server", daemon=True)

    def __enter__(self) -> OwnServer:
        _bypass_proxies(self._host)
        try:
            if self._password:
                with _open_private(_owner_file(self.login), "wb") as stream:
                    stream.write(Owner.this_process("Prefect server").model_dump_json().encode())
                with _open_private(self.login, "wb") as stream:
                    stream.write(f"{self._password}\n".encode())
            self._process = self._launch("wb")
        except OSError as error:
            self._socket.close()
            _remove_login(self.login)
            raise _make_home_error(self._home, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        _stop(self._process)
        if self._watcher.is_alive():
            self._watcher.join()
            # It may have started another one meanwhile.
            _stop(self._process)
        if self._stand_in is not None:
            self._stand_in.shutdown()
        self._socket.close()
        _remove_login(self.login)

    def wait_until_ready(self) -> None:
        """Wait until it answers; from then on it is started again if it ends.

        Raises:
            ServerError: It ended, or takes too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not answers(self.url):
            if self._process.poll() is not None:
                raise ServerError("the local Prefect server ended while starting", f"see {self.log}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the local Prefect server didn't start within {_START_SECONDS:.0f} s", f"see {self.log}"
                )
            time.sleep(0.1)
        self._watcher.start()

    def lost_error(self) -> ServerError:
        """Make the error for a server that is lost."""
        return ServerError(
            "the local Prefect server ended and can't be started again",
            f"see {self.log}; what is finished stays, so run the same command again to resume",
        )

    def _launch(self, mode: str) -> subprocess.Popen[bytes]:
        with _open_private(self.log, mode) as stream:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "slidesam.flows.prefect_api.serve", str(self._socket.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(os.environ, self._home, self.url, self._password),
                # Prefect (by alembic) imports from the current folder, which others may have filled.
                cwd=self._home,
                pass_fds=[self._socket.fileno()],
                # A separate session: Ctrl-C must reach the flow first, which then tells the server how it ended.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _watch(self) -> None:
        """Start the server again whenever it ends."""
        while True:
            self._process.wait()
            if self._closing.is_set():
                return
            self._ends = [end for end in self._ends if time.monotonic() - end < _ENDS_SECONDS] + [time.monotonic()]
            if len(self._ends) > _MOST_ENDS or not self._restart():
                break
        if not self._closing.is_set():
            self._give_up()

    def _restart(self) -> bool:
        """Start the server again; tell whether it answers."""
        try:
            self._process = self._launch("ab")
        except OSError:
            # There is no memory for another process, or the log can't be written any more.
            return False
        deadline = time.monotonic() + _RESTART_SECONDS
        while not self._closing.is_set() and self._process.poll() is None:
            if answers(self.url, timeout=2):
                return True
            if time.monotonic() > deadline:
                _stop(self._process)
                return False
        # It ended again, which counts.
        return True

    def _give_up(self) -> None:
        """Refuse all requests from now on, since clients would repeat them for minutes, and end the run."""
        self.is_lost = True
        stand_in = self._stand_in = ThreadingHTTPServer(("", 0), _Refusal, bind_and_activate=False)
        stand_in.socket.close()
        stand_in.socket = self._socket
        threading.Thread(target=stand_in.serve_forever, name="no Prefect server", daemon=True).start()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _bypass_proxies(host: str) -> None:
    """Let this process, its workers and jobs reach an address directly: a proxy can't, and would be told the password."""
    names = ("no_proxy", "NO_PROXY")
    hosts = [part.strip() for name in names for part in os.environ.get(name, "").split(",") if part.strip()]
    # Alone it means all, in a list nothing.
    if "*" not in hosts:
        os.environ.update(dict.fromkeys(names, ",".join(dict.fromkeys([*hosts, host]))))


def _bind(host: str) -> socket.socket:
    """Return a socket at any free port of an address of this machine, IPv4 or IPv6."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family)
    try:
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class _Refusal(BaseHTTPRequestHandler):
    """Answers in place of a server that is gone: 410, after which Prefect's client doesn't try again; logs are dropped."""

    def _refuse(self) -> None:
        # Who asks may have ended.
        with suppress(OSError):
            self.send_response(201 if self.path == "/api/logs/" else 410)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _refuse  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def answers(url: str, timeout: float = 10) -> bool:
    """Tell whether a Prefect API answers."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and wants the auth string that Prefect's client sends
    except (OSError, ValueError):
        return False


def _open_private(path: Path, mode: str) -> IO[bytes]:
    """Open a file that only its owner can read."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def _make_private(home: Path) -> None:
    """Make PREFECT_HOME so that others can't look into it; if it exists, keep them from what we or Prefect wrote there."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in [*home.glob(f"slidesam-server-*{_OWNER}"), *home.glob("slidesam-server-*.login")]:
        # Of a command that was killed here, or longer ago than any runs.
        login = path.with_name(path.name.removesuffix(_OWNER))
        with suppress(OSError):
            if has_owner_ended(_owner_file(login)) or time.time() - path.stat().st_mtime > _LOGIN_SECONDS:
                _remove_login(login)
    for path in [*home.glob("prefect.db*"), *home.glob("slidesam-server*"), home / "profiles.toml"]:
        # Not ours, or not there.
        with suppress(OSError):
            path.chmod(path.stat().st_mode & 0o700)


def _owner_file(login: Path) -> Path:
    """Return the file that says which process a password is of."""
    return login.with_name(f"{login.name}{_OWNER}")


def _remove_login(login: Path) -> None:
    login.unlink(missing_ok=True)
    _owner_file(login).unlink(missing_ok=True)


def _make_home_error(home: Path, error: OSError) -> ServerError:
    reason = os.strerror(error.errno or 0)
    return ServerError(
        f"{home}, where Prefect keeps its history, can't be written ({reason})", "set PREFECT_HOME to another folder"
    )


def _environment(environment: Mapping[str, str], home: Path, url: str, password: str) -> dict[str, str]:
    locked = {"PREFECT_SERVER_API_AUTH_STRING": password} if password else {}
    return {
        **_choose_pages_folder(home),
        **environment,
        **locked,
        "PREFECT_HOME": str(home.absolute()),
        "PYTHONSAFEPATH": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_API_URL": "",
        # By default the pages use the API at port 4200.
        "PREFECT_SERVER_UI_API_URL": url,
        # By default pages of any web site may read what the API answers.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url.removesuffix("/api"),
    }


def _choose_pages_folder(home: Path) -> dict[str, str]:
    """Let Prefect copy its pages into its home where it can't beside its code, which only whoever installed it may write."""
    prefect = find_spec("prefect")
    if prefect is None or prefect.origin is None or os.access(Path(prefect.origin).parent / "server", os.W_OK):
        return {}
    return {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home.absolute() / "ui")}


def _die_with_parent() -> None:
    """Ask Linux to end the server when the command line is killed; on other systems it must be ended by hand."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
