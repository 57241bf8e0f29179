"""What the database, the server and the worker have in common: how their processes are found, started and ended.

Processes are found in /proc: a stale pid file can mislead nobody. All that a part starts carries a mark in its environment.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil
from site_settings import HERE, MARK, ServerProblem, Site

READY_SECONDS = 180


class Part:
    """A part of an installation.

    Args:
        site: The installation.

    Attributes:
        name: What it is called.
        main_words: In the command line of the one process that the others hang on.
        address_words: In that command line too, if it listens where the settings say.
        place: Where it is, for people.
    """

    name = main_words = address_words = place = ""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.mark = f"{self.name}:{site.data}"
        self.log = site.log(self.name)

    def is_ready(self) -> bool:
        """Say whether it works."""
        raise NotImplementedError

    def run(self) -> NoReturn:
        """Become this part, in the foreground."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make sure that it can be started."""

    def processes(self) -> list[psutil.Process]:
        """Find all of its processes."""
        running = psutil.process_iter(["environ"])
        return [process for process in running if (process.info["environ"] or {}).get(MARK) == self.mark]

    def main_process(self) -> psutil.Process | None:
        """Find the one process that the others hang on."""
        return next((process for process in self.processes() if self.main_words in command_line(process)), None)

    def start(self) -> None:
        """Start it if it doesn't run, and wait until it works."""
        process = self.main_process()
        if process is None:
            self.prepare()
            process = self.spawn()
        elif self.address_words not in command_line(process):
            raise ServerProblem(
                f"the {self.name} (pid {process.pid}) runs with another address than the one that is set: stop it first"
            )
        try:
            wait(
                lambda: self.is_ready() or has_ended(process),
                f"the {self.name} isn't ready after {READY_SECONDS} s; see {self.log}",
            )
            if has_ended(process):
                raise ServerProblem(f"the {self.name} ended while starting; see {self.log}")
        except ServerProblem:
            show_end(self.log)
            raise

    def spawn(self) -> psutil.Process:
        """Start it in the background, writing to its log."""
        with self.log.open("a") as log:
            return psutil.Popen(
                [sys.executable, HERE, "run", self.name],
                env={**self.site.values, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def become(self, command: Sequence[object], environment: Mapping[str, str], folder: Path) -> NoReturn:
        """Run a command in the place of this process."""
        # As a daemon wants them: from a shell without job control SIGINT would be inherited as ignored, and a Prefect worker
        # turns SIGTERM into SIGINT: it would never end. Python itself ignores SIGPIPE and SIGXFSZ.
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(folder)
        words = list(map(str, command))
        os.execvpe(words[0], words, {**environment, MARK: self.mark})  # noqa: S606

    def end(self) -> None:
        """Ask its main process to end, then all that it started, then kill them."""
        main = self.main_process()
        if main is not None:
            send([main], signal.SIGTERM, signal.SIGCONT)
            if are_gone(self.processes, 20):
                return
        send(self.processes(), signal.SIGTERM)
        if are_gone(self.processes, 10):
            return
        # More may be started between the listing and the signal.
        for _ in range(5):
            send(self.processes(), signal.SIGKILL)
            if are_gone(self.processes, 2):
                return
        raise ServerProblem(f"processes of the {self.name} don't end: {pids(self.processes())}")


def command_line(process: psutil.Process) -> str:
    """Return a process's arguments, each with a space behind it; empty where it has ended."""
    with suppress(psutil.Error):
        return "".join(f"{word} " for word in process.cmdline())
    return ""


def has_ended(process: psutil.Process) -> bool:
    """Say whether a process has ended, also if nobody has asked for its exit code."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def send(processes: Iterable[psutil.Process], *signals: signal.Signals) -> None:
    """Send signals to processes, some of which may have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for number in signals:
                process.send_signal(number)


def are_gone(processes: Callable[[], list[psutil.Process]], seconds: float) -> bool:
    """Wait until a search finds no process; say whether that was in time."""
    with suppress(ServerProblem):
        wait(lambda: not processes(), "", seconds)
        return True
    return False


def pids(processes: Iterable[psutil.Process]) -> str:
    """Return the numbers of processes as text."""
    return " ".join(str(process.pid) for process in processes)


def wait(is_so: Callable[[], bool], trouble: str, seconds: float = READY_SECONDS) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise ServerProblem(trouble)
        time.sleep(0.2)


def require_free_port(setting: str, host: str, port: int) -> None:
    """Refuse a port that can't be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"port {port} on {host} can't be used: {error.strerror}"
            raise ServerProblem(f"{reason}. Set {setting} (or SLIDESAM_SERVER_HOST) to another") from error


def show_end(log: Path) -> None:
    """Print the last lines of a log to standard error."""
    if log.is_file():
        print(*log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
