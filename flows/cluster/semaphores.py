"""Semaphores of nannies: their names say which process made them, so that those of killed runs can be found and removed.

A nanny talks to its worker through queues of `multiprocessing`, whose semaphores are files in /dev/shm with random names.
Python's resource tracker removes them, unless it is killed together with all others. Then nobody could tell whose they were.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
from contextlib import suppress
from pathlib import Path

from slidesam.tasks.run.owner import Owner

_FOLDER = Path("/dev/shm")  # noqa: S108
# How Linux names the file of a semaphore; multiprocessing appends something random.
_FILE = re.compile(r"sem\.slidesam-(\d+)-(\d+)-([0-9a-f]{16})-.+")


def name_semaphores() -> None:
    """Have multiprocessing name the semaphores of this process after it, and remove those of processes that have ended."""
    remove_dead_semaphores()
    owner = Owner.this_process("nanny")
    if owner.boot and owner.born is not None:
        # Private, and copied by child processes (cpython, Lib/multiprocessing/synchronize.py, `SemLock._make_name`).
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        config["semprefix"] = f"/slidesam-{owner.pid}-{owner.born}-{_digest(owner)}"


def remove_dead_semaphores() -> None:
    """Remove this user's semaphores whose name says that slidesam made them in a process that has ended on this machine."""
    here = Owner.this_process("")
    with suppress(OSError), os.scandir(_FOLDER) as entries:
        for entry in entries:
            match = _FILE.fullmatch(entry.name)
            if match is None or match[3] != _digest(here):
                continue
            with suppress(OSError):
                is_ours = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                if is_ours and here.model_copy(update={"pid": int(match[1]), "born": int(match[2])}).has_ended:
                    Path(entry.path).unlink()


def _digest(owner: Owner) -> str:
    """Return a hash of the machine, its boot and the process namespace, in which a process id has its meaning."""
    return hashlib.sha256(f"{owner.host} {owner.boot}".encode()).hexdigest()[:16]
