"""Notes for which blocks a worker ran out of memory (`dask worker --preload-nanny slidesam.flows.cluster.on_nanny`).

A killed process says nothing any more. Its nanny, which lives on and starts another, looks at it every tenth of a second: how
much memory it uses, and how many processes of its control group the kernel has killed because memory ran out. If the worker then
ends by a signal, and it was near its limit or the kernel has killed one just now, memory is noted in the start-marks of its
blocks.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from slidesam.flows.cluster.semaphores import name_semaphores
from slidesam.tasks.segment.start_marks import judge_marks
from slidesam.tasks.segment.worker_state import MARKS_FILE

# Share of its limit from which on a process that was killed counts as killed for its memory: it grew since the last look.
_NEAR_LIMIT = 0.8
_LOOK_MILLISECONDS = 100.0
# How a worker ends whose memory was the cause: the kernel's or the nanny's SIGKILL, or SIGTERM, with or without its own handler.
_KILLED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
# Since so many looks the kernel must have killed a process because memory ran out.
_LOOKS = 10
_KILLS = Path("/proc/vmstat")


def dask_setup(nanny: Any) -> None:
    """Watch the worker processes of a nanny."""
    from tornado.ioloop import PeriodicCallback

    name_semaphores()
    watch = _Watch(nanny)
    looks = PeriodicCallback(watch.look, _LOOK_MILLISECONDS)
    nanny.periodic_callbacks["slidesam_memory"] = looks
    looks.start()
    exit_hook = nanny._on_worker_exit_sync

    def on_exit(exitcode: int) -> None:
        watch.judge(exitcode)
        exit_hook(exitcode)

    nanny._on_worker_exit_sync = on_exit


def dask_teardown(nanny: Any) -> None:
    """Remove the list of start-marks; there is none where the nanny couldn't start."""
    path = nanny.env.pop(MARKS_FILE, None)
    if path is not None:
        with suppress(OSError):
            Path(path).unlink(missing_ok=True)


class _Watch:
    """Watches the worker process of a nanny, and those that take its place.

    Args:
        nanny: The nanny.
    """

    def __init__(self, nanny: Any) -> None:
        self._nanny = nanny
        # Of this user only, and on the machine's own disk.
        descriptor, name = tempfile.mkstemp(prefix="slidesam-marks-", dir=nanny.local_directory)
        os.close(descriptor)
        self._marks = Path(name)
        nanny.env[MARKS_FILE] = str(self._marks)
        self._pid: int | None = None
        self._used = 0
        self._kills_file = _KILLS
        self._kills: list[int] = []

    def look(self) -> None:
        """Note how much memory the worker uses, and how many processes the kernel has killed because memory ran out."""
        pid = self._nanny.pid
        if pid is None:
            return
        try:
            used = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            used = 0
        if not used:
            # It has just ended: what it used before is known.
            return
        self._used = used
        kills_file = find_kills_file(pid)
        if (pid, kills_file) != (self._pid, self._kills_file):
            self._pid, self._kills_file, self._kills = pid, kills_file, []
        self._kills = [*self._kills[-_LOOKS:], count_kills(self._kills_file)]

    def judge(self, exitcode: int) -> None:
        """Note in the start-marks of a worker that has ended what ended it."""
        if self._pid is None:
            return
        limit = self._nanny.memory_manager.memory_limit or None
        has_killed = bool(self._kills) and count_kills(self._kills_file) > self._kills[0]
        # Dask's own monitor may have looked later than this one.
        is_ended_here = self._nanny.memory_manager._last_terminated_pid == self._pid
        is_memory = is_ended_here or ran_out(exitcode, self._used, limit, kernel_has_killed=has_killed)
        # Its worker's folder may be gone, with the machine's disk: then the next worker judges alone.
        with suppress(OSError):
            paths = [Path(path) for path in self._marks.read_text().split("\0") if path]
            self._marks.write_text("")
            judge_marks(paths, self._pid, self._used if is_memory else None, limit)


def ran_out(exitcode: int, used: int, limit: int | None, *, kernel_has_killed: bool) -> bool:
    """Tell whether memory was why a worker ended.

    Args:
        exitcode: How it ended; a signal is a negative number.
        used: Bytes that it used when it was last looked at.
        limit: Bytes that it was allowed; None = as many as there are.
        kernel_has_killed: Whether the kernel has killed a process beside it, or itself, because memory ran out.

    Example:
        >>> ran_out(-9, 85, 100, kernel_has_killed=False), ran_out(-9, 8, 100, kernel_has_killed=False)
        (True, False)
    """
    return exitcode in _KILLED and (kernel_has_killed or (limit is not None and used > _NEAR_LIMIT * limit))


def find_kills_file(pid: int) -> Path:
    """Return the file with the count of processes that the kernel has killed because memory ran out.

    It is that of the process's control group, of version 2 or 1, or, if that can't be read here, the whole machine's.
    """
    with suppress(OSError):
        groups = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        roots = {"": ("/sys/fs/cgroup", "memory.events"), "memory": ("/sys/fs/cgroup/memory", "memory.oom_control")}
        for _, controllers, path in groups:
            if controllers in roots:
                root, name = roots[controllers]
                file = Path(f"{root}{path.rstrip('/')}/{name}")
                if file.is_file():
                    return file
    return _KILLS


def count_kills(file: Path) -> int:
    """Read how many processes the kernel has killed because memory ran out; 0 if it doesn't say.

    Example:
        >>> count_kills(Path("/proc/vmstat")) >= 0
        True
    """
    with suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
