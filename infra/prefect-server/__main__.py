"""Starts and stops what a group needs on one host: PostgreSQL, the Prefect server, deployments and automations, a worker.

`prefect-server` runs this with a Python that has Prefect.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil
from database import USER, Database
from parts import Part, are_gone, command_line, pids, require_free_port, send, show_end, wait
from site_settings import HERE, MARK, ROOT, ServerProblem, Site

_PAGES_API, _ORIGINS = "PREFECT_SERVER_UI_API_URL", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
_PAGES, _PAGES_FOLDER = "PREFECT_SERVER_UI_ENABLED", "PREFECT_SERVER_UI_STATIC_DIRECTORY"
SCRIPT = HERE / "prefect-server"
LOCK_SECONDS = 300
# Flows that are told to end cancel their jobs first.
STOP_SECONDS = 60


class Server(Part):
    """The Prefect server."""

    name, main_words = "server", "-m prefect server start "

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.address_words, self.place = f"--host {site.host} --port {site.port} ", site.web

    def prepare(self) -> None:
        """Refuse a port that can't be had."""
        require_free_port("SLIDESAM_SERVER_PORT", self.site.host, self.site.port)

    def run(self) -> NoReturn:
        """Become the Prefect server, once the database answers."""
        site, database = self.site, Database(self.site)
        wait(database.is_ready, f"no database on port {site.database_port}: see {database.log}")
        is_made = database.query("select 1 from pg_database where datname = 'prefect'")
        if not is_made and database.query("create database prefect") is None:
            raise ServerProblem("the database 'prefect' could not be made")
        login = f"{USER}:{site.secret('database.password')}@127.0.0.1:{site.database_port}"
        environment = site.prefect_environment() | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{login}/prefect",
            "PREFECT_SERVER_API_AUTH_STRING": site.auth_string,
            _PAGES_API: site.values.get(_PAGES_API) or f"{site.web}/api",
            # By default pages of any web site may read what the API answers to a browser that has its password.
            _ORIGINS: site.values.get(_ORIGINS) or site.web,
            # Prefect copies its pages beside its code by default, where only whoever installed it can write.
            _PAGES_FOLDER: site.values.get(_PAGES_FOLDER) or str(site.data / "ui"),
            # Finished runs with their logs go after so many days; without "flow_runs" Prefect keeps them for ever.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(
                int(site.values["SLIDESAM_HISTORY_DAYS"]) * 86400
            ),
            # For the automations to see to what happened before a restart, however long ago. By default what they wait for
            # is thrown away a minute after its time; and an event that waits for one from before the restart (for a quarter
            # of an hour) is kept in memory, where another restart would lose it. Either way a crashed run would stay so.
            "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P30D",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect.server.events.ordering.db",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", site.host, "--port", site.port]
        self.become(command, environment, site.data)

    def is_ready(self) -> bool:
        """Say whether this server, with this password, answers, and has pages for a browser unless they are switched off."""
        if not self.answers("/api/admin/version"):
            return False
        return self.site.values.get(_PAGES, "").lower() in ("false", "0") or self.answers("/")

    def answers(self, path: str) -> bool:
        """Say whether it answers with what is asked for."""
        host = "127.0.0.1" if self.site.host == "0.0.0.0" else self.site.host  # noqa: S104
        word = base64.b64encode(self.site.auth_string.encode()).decode()
        # As a browser asks: then `/` is the page that it is sent on to.
        headers = {"Authorization": f"Basic {word}", "Accept": "text/html, */*"}
        request = urllib.request.Request(f"http://{host}:{self.site.port}{path}", headers=headers)
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
        except OSError:
            return False
        return True

    def wait_until_ready(self) -> None:
        """Wait until it answers, whoever starts it."""
        wait(self.is_ready, f"no server at {self.site.web}: see {self.log}")


class Worker(Part):
    """Prefect's worker, which starts flow runs as processes."""

    name, main_words = "worker", " worker start --pool slidesam "

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.place = f"work pool slidesam, {site.values['SLIDESAM_SLIDES_AT_ONCE']} slides at once"

    def start(self) -> None:
        """Start it, or let it go on if a stop that was interrupted has left it frozen."""
        main = self.main_process()
        if main is not None:
            send([main], signal.SIGCONT)
            return
        self.log.write_text("")
        super().start()

    def is_ready(self) -> bool:
        """Say whether it has told its log that it is at work."""
        return "started!" in self.log.read_text(errors="replace")

    def run(self) -> NoReturn:
        """Become the worker, once the server answers."""
        Server(self.site).wait_until_ready()
        environment = self.site.prefect_environment()
        defaults = {
            # A run that says nothing for five minutes is taken for dead (deployments/automations.yaml).
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            # Workers keep something in runner_storage of the folder for temporary files: in /tmp another user may own that.
            "TMPDIR": str(self.site.data / "tmp"),
        }
        environment |= {name: environment.get(name) or value for name, value in defaults.items()}
        Path(environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        name = socket.gethostname().partition(".")[0]
        options = ("--pool", "slidesam", "--type", "process", "--name", name, "--install-policy", "never")
        self.become([sys.executable, HERE / "worker.py", "worker", "start", *options], environment, self.site.data)

    def flows(self) -> list[psutil.Process]:
        """Find the processes of flow runs, without what they have started."""
        return [process for process in self.processes() if "-m prefect.engine" in command_line(process)]

    def end(self) -> None:
        """End the flows, then the worker.

        A worker that is told to end kills its flows at once: their jobs would stay in the queue, and the server would show them
        as running. So they go first, with the worker frozen meanwhile, or it would start the next run in the place of each.
        """
        if flows := self.flows():
            main = self.main_process()
            send([] if main is None else [main], signal.SIGSTOP)
            send(flows, signal.SIGTERM)
            if not are_gone(self.flows, STOP_SECONDS):
                warn(f"these flows didn't end in {STOP_SECONDS} s and are killed: {pids(self.flows())}")
            # For the automations to see that these runs have crashed: they go on after the next start.
            time.sleep(1)
        super().end()


def start(site: Site) -> int:
    """Start what doesn't run, and register deployments and automations if they have changed."""
    with locked(site):
        Database(site).start()
        Server(site).start()
        file = site.data / "deployed"
        if not file.is_file() or file.read_text() != hash_of_deployments(site):
            deploy(site)
        Worker(site).start()
    say(f"running: {site.web} (log in: '{SCRIPT} status' says how)")
    return 0


def stop(site: Site, *, worker_only: bool) -> int:
    """End the worker with its flows, and unless it alone is meant, the server and the database."""
    if not site.data.is_dir():
        say("not running")
        return 0
    with locked(site):
        Worker(site).end()
        if not worker_only:
            Server(site).end()
            Database(site).end()
    say("the worker is stopped" if worker_only else f"stopped; data and logs are in {site.data}")
    return 0


def status(site: Site, *, show_password: bool) -> int:
    """Print what runs, where, and how to log in.

    Returns:
        0 if all runs, 1 if a part of it does, 3 if nothing.
    """
    server = Server(site)
    mains = {part: part.main_process() for part in (Database(site), server, Worker(site))}
    for part, main in mains.items():
        say(f"{part.name}: {'not running' if main is None else f'runs, pid {main.pid}'}, {part.place}")
    say(f"data {site.data}, logs {site.data / 'log'}")
    if not any(mains.values()):
        return 3
    is_silent = mains[server] is not None and not server.is_ready()
    if is_silent:
        trouble = "has no pages for a browser" if server.answers("/api/admin/version") else "doesn't answer"
        warn(f"the server at {site.web} {trouble}: see {server.log}")
    word = site.auth_string if show_password else "slidesam:..."
    say(f"in a browser: {site.web}")
    say(f"in a shell:   export PREFECT_API_URL={site.web}/api PREFECT_API_AUTH_STRING='{word}'")
    if not show_password:
        say(f"the password: '{SCRIPT} status --show-password', as a user who may read {site.data}")
    return 0 if all(mains.values()) and not is_silent else 1


def deploy(site: Site) -> int:
    """Register the work pool, the deployments and the automations."""
    Server(site).wait_until_ready()
    setup, log = HERE / "site_setup.py", site.log("deploy")
    notes = site.data / "deployments.json"
    run_python(site, "the work pool could not be made", setup, "before", notes, site.values["SLIDESAM_SLIDES_AT_ONCE"])
    options = ("--no-prompt", "deploy", "--all", "--prefect-file", site.deployments / "prefect.yaml")
    run_python(site, f"the deployments could not be made; see {log}", "-m", "prefect", *options, log=log)
    run_python(site, "what was set in the UI could not be put back", setup, "after", notes)
    # Whom to notify it reads from the environment: the address of a webhook is a secret.
    automations = ("slidesam.flows.prefect_api.automations", site.deployments / "automations.yaml")
    run_python(site, "the automations could not be made", "-m", *automations)
    (site.data / "deployed").write_text(hash_of_deployments(site))
    return 0


def run_python(site: Site, trouble: str, *arguments: object, log: Path | None = None) -> None:
    """Run Python with the settings of a Prefect process, and wait for it."""
    command, environment = [sys.executable, *map(str, arguments)], site.prefect_environment()
    with Path(log or os.devnull).open("w") as stream:
        output = None if log is None else stream
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, stderr=output, check=False)  # noqa: S603
    if done.returncode:
        if log is not None:
            show_end(log)
        raise ServerProblem(trouble)


def hash_of_deployments(site: Site) -> str:
    """Return a hash of what is registered: settings, files, and the flows whose parameters become forms."""
    files = [*site.deployments.glob("*.yaml"), *(ROOT / "flows").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    settings = [
        f"{name}={value}" for name, value in site.values.items() if name.startswith("SLIDESAM_") and name != MARK
    ]
    if site.values["SLIDESAM_SETTINGS"]:
        files.append(Path(site.values["SLIDESAM_SETTINGS"]))
    content = [*(path.read_bytes() for path in sorted(files)), *(setting.encode() for setting in sorted(settings))]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


@contextmanager
def locked(site: Site) -> Iterator[None]:
    """Let one start or stop go at a time. What is started doesn't inherit the lock."""
    file = site.data / "lock"

    def is_held() -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with file.open("w") as stream:
        wait(is_held, f"another start or stop holds {file}", LOCK_SECONDS)
        yield


def say(words: str) -> None:
    """Print a line."""
    print(f"prefect-server: {words}", flush=True)


def warn(words: str) -> None:
    """Print a line to standard error."""
    print(f"prefect-server: {words}", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=str(SCRIPT), description=__doc__.partition("\n")[0])
    parser.add_argument("--config", metavar="FILE", help="settings; see server.env.example")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("install", help="PostgreSQL from Debian's packages (root)")
    commands.add_parser("start", help="all of it; may be called twice")
    command = commands.add_parser(
        "stop", help="all of it, or the worker and its flows, which go on after the next start"
    )
    command.add_argument("part", nargs="?", choices=["worker", "all"], default="all")
    command = commands.add_parser("status", help="what runs, where, and how to log in")
    command.add_argument("--show-password", action="store_true")
    commands.add_parser("deploy", help="work pool, deployments and automations again, after an upgrade")
    command = commands.add_parser("run", help="one part in the foreground, for systemd")
    command.add_argument("part", choices=["database", "server", "worker"])
    return parser.parse_args()


def main() -> int:
    """Do what the command line says.

    Returns:
        Exit code.
    """
    chosen, environment = options(), dict(os.environ)
    config = chosen.config or environment.get("SLIDESAM_SERVER_CONFIG")
    if config:
        environment["SLIDESAM_SERVER_CONFIG"] = str(Path(config).resolve())
    try:
        site = Site(environment)
        if chosen.command == "status":
            return status(site, show_password=chosen.show_password)
        if chosen.command == "stop":
            return stop(site, worker_only=chosen.part == "worker")
        if chosen.command == "deploy":
            return deploy(site)
        site.make_folders()
        if chosen.command == "start":
            return start(site)
        {"database": Database, "server": Server, "worker": Worker}[chosen.part](site).run()
    except ServerProblem as error:
        warn(str(error))
        return 1
    except BrokenPipeError:
        # As in `status | head`: nobody reads what is still to come.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        warn(f"{error}: make room, or correct the permissions")
        return 1


if __name__ == "__main__":
    sys.exit(main())
