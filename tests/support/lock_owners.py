"""Other owners of a lock: real processes, and lock files of hosts that are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slidesam.tasks.run.lock_file import PACE, Pace
from slidesam.tasks.run.owner import Owner

WHAT = "CMU-1 (cells) in /out"


FAST = Pace(beat=0.1, stale=1.0, poll=0.02)


# Of one who is suspended on purpose: a taker's eyes stay on anybody else for long, who may only seem so on a loaded machine.
QUIET, PATIENT = Pace(beat=0.2, stale=1.0, poll=0.05), Pace(beat=20, stale=1.0, poll=0.05)


# A clock of the file server that is off: all times that it sets are.
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
from slidesam.tasks.run.lock_file import Pace
beat, stale, poll = map(float, sys.argv[2].split())
with locked(Path(sys.argv[1]), "the other", what="CMU-1 (cells) in /out", pace=Pace(beat, stale, poll)) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lock.check()
            print("ours", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
print("released", flush=True)
"""


class Other:
    """Another process that holds a lock, and answers whether it thinks that it still does."""

    def __init__(self, path: Path, pace: Pace, before: str = "") -> None:
        command = [sys.executable, "-c", before + OWNER, str(path), f"{pace.beat} {pace.stale} {pace.poll}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdin
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def says(self) -> str:
        return self.stdout.readline().strip()

    def checks(self) -> str:
        self.stdin.write("check\n")
        self.stdin.flush()
        return self.says()

    def ends(self) -> str:
        self.stdin.close()
        return self.says()


@contextmanager
def other(path: Path, pace: Pace = PACE, before: str = "") -> Iterator[Other]:
    it = Other(path, pace, before)
    try:
        assert it.says() == "held"
        yield it
    finally:
        it.process.kill()
        it.process.send_signal(signal.SIGCONT)
        it.process.wait()
        it.stdout.close()
        if not it.stdin.closed:
            it.stdin.close()


def elsewhere(path: Path, age: float = 0.0, **changes: object) -> Owner:
    """A lock of another host, last touched `age` seconds ago."""
    owner = Owner.me("the other").model_copy(update={"host": "node7", **changes})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner.model_dump_json())
    aged(path, age)
    return owner


def aged(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age, time.time() - age))


def free(path: Path) -> bool:
    """Nobody's lock, and nothing left beside it."""
    return list(path.parent.iterdir()) == []
