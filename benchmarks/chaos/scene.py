"""The folder, the environment and the processes of a run that is to be disturbed, on this host or in jobs of Slurm."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import yaml

from benchmarks.chaos.segmenter import TARGET, make_settings

ROOT = Path(__file__).resolve().parents[2]
MARKER = "SLIDESAM_CHAOS"
# Which process is what, by a part of its command.
_ROLES = {"spawn_main": "worker", "device_workers": "nanny", "prefect_api.serve": "server", " segment ": "flow"}
# Put into the environment of all processes of a command: their clock runs ahead by what a file says.
_CLOCK = """
import os, time
_real, _file = time.time, os.environ.get("SLIDESAM_CHAOS_CLOCK")
def _ahead():
    try:
        with open(_file) as stream:
            return float(stream.read() or 0)
    except (OSError, ValueError):
        return 0.0
if _file:
    time.time = lambda: _real() + _ahead()
"""


class Scene:
    """The folder, the environment and the processes of one run with two local workers.

    Args:
        folder: A folder of its own.
        slide: The slide.
        home: A PREFECT_HOME whose database is copied: making one takes longer than all else.

    As root, the output is a small disk of its own, and the network a namespace of its own.
    """

    with_root = os.geteuid() == 0
    deeds: tuple[str, ...] = (
        "kill flow", "kill server", "kill worker", "kill group", "stop flow", "stop server", "stop worker", "stop for good",
        "clock", *(("disk", "network") if with_root else ()),
    )  # fmt: skip

    def __init__(self, folder: Path, slide: Path, home: Path | None = None) -> None:
        self.folder, self.slide = folder, slide
        self.output, self.log, self.marker = folder / "out", folder / "log", uuid.uuid4().hex
        for name in ("out", "tmp", "clock", "shm", "home"):
            (folder / name).mkdir(parents=True)
        for path in [] if home is None else home.glob("prefect.db*"):
            shutil.copy(path, folder / "home")
        (folder / "clock" / "sitecustomize.py").write_text(_CLOCK)
        (folder / "settings.yaml").write_text(yaml.safe_dump(make_settings(self.log, self.output)))
        if self.with_root:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.output)], check=True)

    def close(self) -> None:
        """End what runs, and take the disk away."""
        self.kill_group()
        if self.with_root:
            subprocess.run(["umount", "-l", str(self.output)], check=False)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, as a person gives it."""
        command = [
            str(Path(sys.executable).with_name("slidesam")), "segment", str(self.slide), "-o", str(self.output), "--settings",
            str(self.folder / "settings.yaml"), "--allow", TARGET,
        ]  # fmt: skip
        environment = {
            **os.environ, MARKER: self.marker, "SLIDESAM_CHAOS_CLOCK": str(self.folder / "clock" / "ahead"),
            "PREFECT_HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{self.folder / 'clock'}{os.pathsep}{ROOT}",
        }  # fmt: skip
        environment.pop("PREFECT_API_URL", None)
        with (self.folder / "words").open("ab") as words:
            return self._launch(command, environment, words.fileno())

    def _launch(self, command: list[str], environment: dict[str, str], words: int) -> subprocess.Popen[bytes]:
        command = [*command, "--workers", "2"]
        if self.with_root:
            inside = 'ip link set lo up && mount --bind "$0" /dev/shm && exec "$@"'
            command = ["unshare", "-n", "-m", "sh", "-c", inside, str(self.folder / "shm"), *command]
        return subprocess.Popen(command, env=environment, stdout=words, stderr=words, start_new_session=True)

    def members(self, role: str) -> list[psutil.Process]:
        """List the processes of a role: flow, server, nanny, worker, or all.

        A nanny of local workers is no process of its own: it lives in the flow's, as Dask's scheduler does.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    words = " ".join(process.cmdline())
                    if role in ("all", next((kind for part, kind in _ROLES.items() if part in words), "")):
                        found.append(process)
        return found

    def kill_group(self) -> None:
        """Kill every process of the run."""
        while members := self.members("all"):
            send(members, signal.SIGKILL)
            time.sleep(0.05)

    def cut_network(self, seconds: float) -> None:
        """Take the members' network away for some seconds: they can't reach each other."""
        flow = next(iter(self.members("flow")), None)
        if flow is not None:
            inside = ["nsenter", "-t", str(flow.pid), "-n", "ip", "link", "set", "lo"]
            subprocess.run([*inside, "down"], check=False)
            time.sleep(seconds)
            subprocess.run([*inside, "up"], check=False)

    def computed_blocks(self) -> list[bool]:
        """Of each block that was computed so far, in order: whether it had a result already."""
        return [line.endswith(" 1") for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def leftovers(self) -> list[str]:
        """List what a finished command should not have left."""
        found = [f"process {process.pid}" for process in self.members("all")]
        temporary = [path for name in ("tmp", "shm") for path in (self.folder / name).rglob("*") if path.is_file()]
        temporary += (self.folder / "home").glob("slidesam-server-*.login*")
        found += [str(path) for path in temporary if path.parent.name != "dask-scratch-space"]
        for pattern in ("*.partial*", "*.tmp", "lock.json", "starts/*", "*.break*", "*.pem", ".trash*"):
            found += [str(path.relative_to(self.output)) for path in self.output.rglob(pattern)]
        return found


class SlurmScene(Scene):
    """The same with two jobs of infra/dev-slurm, whose nodes are network namespaces of this host."""

    deeds = (*Scene.deeds, "kill nanny", "stop nanny", "cancel job")
    _OPTIONS = (
        "scheduler.host=10.177.0.1", "cpu.cores=1", "cpu.memory=2", "cpu.maximum_jobs=2", "give_back_after=5",
        "death_timeout=20",
    )  # fmt: skip

    def _launch(self, command: list[str], environment: dict[str, str], words: int) -> subprocess.Popen[bytes]:
        options = [word for option in self._OPTIONS for word in ("--cluster-set", option)]
        return subprocess.Popen(
            [*command, "--cluster", "slurm-cpu", *options], env=environment | {"SBATCH_ACCOUNT": self.marker},
            stdout=words, stderr=words, start_new_session=True,
        )  # fmt: skip

    def jobs(self) -> list[str]:
        """List the ids of the jobs that the commands have in the queue."""
        lines = subprocess.run(
            ["squeue", "--noheader", "--format=%a %A"], capture_output=True, text=True, check=False, timeout=60
        ).stdout.splitlines()
        return [line.split()[1] for line in lines if line.startswith(self.marker)]

    def close(self) -> None:
        """End what runs, cancel the jobs, and take the disk away."""
        if jobs := self.jobs():
            subprocess.run(["scancel", *jobs], check=False)
        super().close()

    def cut_network(self, seconds: float) -> None:
        """Take one node's network away for some seconds."""
        link = ["ip", "link", "set", "ss-node1"]
        subprocess.run([*link, "down"], check=False)
        time.sleep(seconds)
        subprocess.run([*link, "up"], check=False)

    def leftovers(self) -> list[str]:
        """List what a finished command should not have left, jobs too."""
        return [*super().leftovers(), *(f"job {job}" for job in self.jobs())]


def send(members: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may have ended."""
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
