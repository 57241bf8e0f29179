"""infra/prefect-server in a folder of its own, driven by its script, for the tests that need a server as a group has it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.support import ROOT
from tests.support.other_user import open_folder
from tests.support.slurm_fixtures import until

SCRIPT = ROOT / "infra" / "prefect-server" / "prefect-server"
# A loaded machine of two cores takes its time to start processes.
PATIENCE = 300.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
HAS_POSTGRES = bool(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for a server: as root the database is user postgres's, who can't enter pytest's folders."""
    with open_folder(0o711) as folder:
        yield folder


class Server:
    """One installation in a folder of its own, driven by the script."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.host, self.data, self.config = host, folder / "data", folder / "server.env"
        self.profiles = folder / "profiles"
        self.port, self.database_port = free_port(), free_port()
        self.prefix: tuple[str, ...] = ()
        self.config.write_text(
            "# the settings of a test\n"
            f"SLIDESAM_SERVER_DATA={self.data}\n"
            f"SLIDESAM_SERVER_HOST={host}\n"
            f"SLIDESAM_SERVER_PORT={self.port}\n"
            f'SLIDESAM_DATABASE_PORT="{self.database_port}"\n'
            f"SLIDESAM_OUTPUT={folder / 'results'}\n"
            f"SLIDESAM_PROFILES={self.profiles}\n"
            # Flows call the segmenters of the tests.
            "SLIDESAM_ALLOW=tests.*\n"
            "SLIDESAM_SLIDES_AT_ONCE=7\n"
            "SLIDESAM_NOTIFY=\n"
            "SLIDESAM_TIMEZONE=Asia/Tokyo\n"
            "MICROSAM_CACHEDIR=\n"
            "PREFECT_WORKER_QUERY_SECONDS=1\n"
        )

    def __call__(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SLIDESAM_"))}
        return subprocess.run(
            [*self.prefix, SCRIPT, "--config", self.config, *command],
            env=kept | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, **environment: str) -> None:
        done = self("start", **environment)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_without_writing_its_code(self) -> None:
        """Start it as a user who can't write where slidesam is installed: root could, so the folder is read-only for it."""
        script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
        self.prefix = ("unshare", "--mount", "sh", "-c", script, "sh", sys.prefix)
        self.start()
        self.prefix = ()

    def pids(self) -> dict[str, str]:
        """Part → pid, of those that run."""
        words = [line.split() for line in self("status").stdout.splitlines() if ", pid " in line]
        return {line[1].rstrip(":"): line[4].rstrip(",") for line in words}

    @property
    def password(self) -> str:
        return (self.data / "server.password").read_text().strip()

    def api(self, path: str, body: object = None, method: str = "", password: str | None = None):
        word = b64encode(f"slidesam:{self.password if password is None else password}".encode()).decode()
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"}
            | ({} if password == "" else {"Authorization": f"Basic {word}"}),
            method=method or None,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def left(self) -> list[str]:
        """Command lines of processes that belong to it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                theirs = f":{self.data}\0".encode() in (process / "environ").read_bytes()
                theirs |= (process / "cwd").readlink().is_relative_to(self.data)
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if theirs and command:
                found.append(f"{process.name} {command}")
        return found

    def kill(self) -> None:
        for line in self.left():
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        until(lambda: not self.left(), 60)

    @property
    def environment(self) -> dict[str, str]:
        """What a person's shell has to talk to it."""
        return {
            "PREFECT_API_URL": f"http://{self.host}:{self.port}/api",
            "PREFECT_API_AUTH_STRING": f"slidesam:{self.password}",
        }

    @contextmanager
    def part(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one part in the foreground, as systemd does; ask it to end."""
        with subprocess.Popen([SCRIPT, "--config", self.config, "run", name]) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGINT)

    def can_log_in(self) -> bool:
        """Tell whether the database answers to the password of the file."""
        file = self.data / "database.password"
        if not file.is_file():
            return False
        psql = max(Path("/usr/lib/postgresql").glob("*/bin/psql"))
        address = ["-h", "127.0.0.1", "-p", str(self.database_port), "-U", "slidesam", "-d", "postgres"]
        environment = os.environ | {"PGPASSWORD": file.read_text().strip()}
        command = [psql, *address, "-wqXc", "select 1"]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    @contextmanager
    def database_transaction(self, command: str) -> Iterator[None]:
        """A transaction of the server's database that has done this, and is open."""
        script = f"begin; {command};\n\\echo open\n"
        psql = max(Path("/usr/lib/postgresql").glob("*/bin/psql"))
        address = ["-h", "127.0.0.1", "-p", str(self.database_port), "-U", "slidesam", "-d", "prefect"]
        environment = os.environ | {"PGPASSWORD": (self.data / "database.password").read_text().strip()}
        with subprocess.Popen(
            [psql, *address, "-wqX", "-v", "ON_ERROR_STOP=1"],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(script)
            process.stdin.flush()
            assert process.stdout.readline() == "open\n"
            yield
            process.stdin.close()

    def deployment(self, name: str) -> dict:
        (found,) = self.api("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found

    def begin(self, name: str, **parameters: object) -> str:
        """Starts a run of a deployment, as the form does."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.api(f"deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]

    def run(self, run_id: str) -> dict:
        return self.api(f"flow_runs/{run_id}")

    def runs(self, **these: object) -> list[dict]:
        return self.api("flow_runs/filter", {"flow_runs": these, "limit": 200})

    def tagged(self, tag: str) -> dict[str, dict]:
        """Runs by the slide's name."""
        return {run["name"].partition(" · ")[0]: run for run in self.runs(tags={"all_": [tag]})}

    def ended(self, run_id: str, count: int = 1) -> dict:
        """A run, once it has ended for the how manieth time."""

        def has_ended() -> dict | None:
            run = self.run(run_id)
            return run if run["state"]["type"] in ENDED and run["run_count"] >= count else None

        return until(has_ended, PATIENCE)

    def artifact(self, run_id: str, key: str) -> dict:
        these = {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}
        return self.api("artifacts/filter", {"artifacts": these, "sort": "UPDATED_DESC"})[0]


def settings(log: Path, **options: object) -> dict:
    return {
        "segmenter": {
            "kind": "function",
            "target": "tests.support.faults:bright_pieces",
            "options": {"log": str(log), **options},
        },
        "blocks": {"block_shape": [64, 64], "halo": 0},
        "run": {"retry_delay": 0.1},
    }


def blocks_done(log: Path) -> int:
    return log.read_text().count("done") if log.exists() else 0


def can_listen(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
