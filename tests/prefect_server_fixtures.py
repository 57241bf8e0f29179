"""infra/prefect-server in a folder of its own, driven by its script, for the tests that need a server as a group has it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from base64 import b64encode
from contextlib import closing, suppress
from pathlib import Path

from tests.conftest import ROOT
from tests.slurm_fixtures import until

SCRIPT = ROOT / "infra" / "prefect-server" / "prefect-server"
HAS_POSTGRES = bool(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One installation in a folder of its own, driven by the script."""

    def __init__(self, folder: Path) -> None:
        self.data, self.config = folder / "data", folder / "server.env"
        self.port, self.database_port = free_port(), free_port()
        self.config.write_text(
            "# the settings of a test\n"
            f"SLIDESAM_SERVER_DATA={self.data}\n"
            f"SLIDESAM_SERVER_PORT={self.port}\n"
            f'SLIDESAM_DATABASE_PORT="{self.database_port}"\n'
            f"SLIDESAM_OUTPUT={folder / 'results'}\n"
            "SLIDESAM_SLIDES_AT_ONCE=7\n"
            "SLIDESAM_NOTIFY=\n"
            "PREFECT_WORKER_QUERY_SECONDS=1\n"
        )

    def __call__(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SLIDESAM_"))}
        return subprocess.run(
            [SCRIPT, "--config", self.config, *command],
            env=kept | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self) -> None:
        done = self("start")
        assert done.returncode == 0, done.stdout + done.stderr

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
            f"http://127.0.0.1:{self.port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Basic {word}"} if word else {}),
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
        until(lambda: not self.left(), 20)


def can_listen(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
