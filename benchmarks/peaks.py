"""Peak memory of every process that a command starts, by what it does.

    with PeakMemory(command.pid) as peaks:
        command.wait()
    for role, pid, mib in peaks.table():
        ...

The kernel's own high-water mark (VmHWM) is read where there is one: it misses nothing that happens between two samples, except
what a process takes in its last 0.05 s. Elsewhere it is the largest resident set (RSS) that was seen. Both count pages that
processes share, such as libraries, once for each; `total` counts them once.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

_INTERVAL = 0.05
# New processes are looked for less often, to take less of the cores that are being measured: some 3 % of one in all.
_SAMPLES_PER_SEARCH = 4
# Sharing is looked up less often: the kernel walks all pages of a process for it, 0.2 ms to 10 ms per GiB.
_SAMPLES_PER_TOTAL = 10
_MIB = 2**20
# The first that is found in a command line. Nothing in slidesam but Dask's nannies spawns through multiprocessing.
_ROLES = (
    ("prefect server start", "Prefect server"),
    ("uvicorn", "Prefect server"),
    ("multiprocessing.resource_tracker", "resource tracker"),
    ("multiprocessing.forkserver", "fork server"),
    ("multiprocessing.spawn", "Dask worker"),
    ("dask spawn", "Dask worker"),
    ("dask worker", "Dask worker"),
    ("dask_worker", "Dask worker"),
    ("dask nanny", "Dask nanny"),
    ("dask scheduler", "Dask scheduler"),
    ("dask_scheduler", "Dask scheduler"),
    ("prefect", "Prefect"),
)


class Peak(NamedTuple):
    """One process."""

    role: str
    pid: int
    mib: float


class PeakMemory:
    """Watches processes for as long as it is open.

    Args:
        pid: Watched with all below it. By default what this process starts, without itself.

    Attributes:
        total: The most memory that all took at one time, in MiB, shared pages counted once; sampled twice a second.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._root, self._with_root = psutil.Process(pid), pid is not None
        # Kept once seen: whose parent ends is no longer below the root.
        self._watched: dict[psutil.Process, tuple[list[str], float]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.total = 0.0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def table(self) -> list[Peak]:
        """Each process that was seen, by role, the largest first."""
        peaks = [Peak(_role(command), process.pid, mib) for process, (command, mib) in list(self._watched.items())]
        return sorted(peaks, key=lambda peak: (peak.role, -peak.mib))

    def _watch(self) -> None:
        samples = 0
        while True:
            last = self._done.wait(_INTERVAL)
            processes = self._found() if samples % _SAMPLES_PER_SEARCH == 0 else list(self._watched)
            for process in processes:
                self._sample(process)
            if samples % _SAMPLES_PER_TOTAL == 0 or last:
                self.total = max(self.total, sum(_share(process.pid) for process in processes))
            if last:
                return
            samples += 1

    def _found(self) -> list[psutil.Process]:
        try:
            found = self._root.children(recursive=True) + [self._root] * self._with_root
        except psutil.Error:
            found = []
        return list(dict.fromkeys([*self._watched, *found]))

    def _sample(self, process: psutil.Process) -> None:
        try:
            if not process.is_running():  # its number may be another's by now
                return
            command, mib = process.cmdline(), _peak(process)
        except (psutil.Error, OSError):
            return
        if not command:  # about to end
            return
        before, peak = self._watched.get(process, (command, 0.0))
        # Before a new process becomes its own program it is a copy of its parent, memory and all.
        self._watched[process] = command, max(peak, mib) if command == before else mib


def _role(command: list[str]) -> str:
    """What a process does, from its command line."""
    line = " ".join(command)
    if any(Path(word).name == "slidesam" or word.startswith("slidesam.flows") for word in command[:3]):
        return "slidesam"
    return next((role for words, role in _ROLES if words in line), "other")


def _peak(process: psutil.Process) -> float:
    """High-water mark of a process in MiB, else what it has now."""
    high = _kilobytes(Path(f"/proc/{process.pid}/status"), "VmHWM:")
    return process.memory_info().rss / _MIB if high is None else high / 1024


def _share(pid: int) -> float:
    """MiB of a process, of pages shared by n processes an n-th; 0 where that can't be read."""
    return (_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") or 0) / 1024


def _kilobytes(path: Path, field: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), None)
