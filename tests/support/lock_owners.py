"""Other owners of a lock: real processes, and lock files of hosts that don't exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slidesam.tasks.run.lock_file import PACE, LockPace
from slidesam.tasks.run.owner import Owner

TARGET = "CMU-1 (cells) in /out"
FAST = LockPace(beat=0.1, stale=1.0, poll=0.02)
# QUIET is for an owner that is suspended on purpose. With PATIENT a process watches for long before it takes over from an
# owner that only seems dead because the machine is loaded.
QUIET, PATIENT = LockPace(beat=0.2, stale=1.0, poll=0.05), LockPace(beat=20, stale=1.0, poll=0.05)
# Python code for a file server whose clock is wrong: so are all times that it sets.
SKEWED = """
import os
plain = os.utime
def utime(path, *args, **kwargs):
    plain(path, *args, **kwargs)
    moved = os.stat(path).st_mtime_ns + int({skew} * 1e9)
    plain(path, ns=(moved, moved))
os.utime = utime
"""
OWNER = """
import sys
from pathlib import Path
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.lock_file import LockPace
beat, stale, poll = map(float, sys.argv[2].split())
with locked(Path(sys.argv[1]), "the other", target="CMU-1 (cells) in /out", pace=LockPace(beat, stale, poll)) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lock.check()
            print("ours", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
print("released", flush=True)
"""


class OwnerProcess:
    """Another process that holds a lock, and answers whether it still does."""

    def __init__(self, path: Path, pace: LockPace, setup: str = "") -> None:
        command = [sys.executable, "-c", setup + OWNER, str(path), f"{pace.beat} {pace.stale} {pace.poll}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdin
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def read_answer(self) -> str:
        return self.stdout.readline().strip()

    def check(self) -> str:
        self.stdin.write("check\n")
        self.stdin.flush()
        return self.read_answer()

    def release(self) -> str:
        self.stdin.close()
        return self.read_answer()


@contextmanager
def locked_elsewhere(path: Path, pace: LockPace = PACE, setup: str = "") -> Iterator[OwnerProcess]:
    """Let another process hold a lock while the code inside runs."""
    owner = OwnerProcess(path, pace, setup)
    try:
        assert owner.read_answer() == "held"
        yield owner
    finally:
        owner.process.kill()
        owner.process.send_signal(signal.SIGCONT)
        owner.process.wait()
        owner.stdout.close()
        if not owner.stdin.closed:
            owner.stdin.close()


def write_lock(path: Path, age: float = 0.0, **changes: object) -> Owner:
    """Write a lock file of another host, last touched `age` seconds ago."""
    owner = Owner.this_process("the other").model_copy(update={"host": "node7", **changes})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner.model_dump_json())
    set_age(path, age)
    return owner


def set_age(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age, time.time() - age))


def is_free(path: Path) -> bool:
    """Tell whether there is no lock, and no file beside it."""
    return list(path.parent.iterdir()) == []
