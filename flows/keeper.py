"""Keeps as many jobs as there is work for: asks for them, replaces those that are gone, gives back those that are idle.

dask-jobqueue's own scaling guesses from how long tasks took, so that it closes workers in the middle of a block, and never
misses a job that was cancelled while it waited in the queue. Here a job is wanted for as many tasks as its workers can have at
once; only jobs without a task are given back, and after a while only, for who gives a job back has to queue for the next.
Jobs that end before a worker of theirs has come (a wrong prologue, a missing container) would be replaced for ever: after some
in a row no more are asked for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.core import Status
from distributed.deploy.adaptive import Adaptive

from slidesam.tasks.attempts import last_lines
from slidesam.tasks.errors import ClusterError

_INTERVAL = 1.0
# Between two looks at the queue: while jobs wait in it, and while all are at work.
_LOOK_SECONDS, _QUIET_SECONDS = 5.0, 30.0
# A job that was just submitted may not be in the queue's list yet.
_GRACE = 5.0
_STILLBORN = 4
_DONE_STATES = ("memory", "erred", "released", "forgotten")


class JobKeeper(Adaptive):
    """The number of jobs of a dask-jobqueue cluster, in jobs where Dask counts workers.

    Args:
        cluster: The cluster.
        workers: Workers of a job.
        give_back_after: Seconds without a task after which a job is given back.
        listed: Ids of the jobs that the queue knows, or None where that can't be asked.
        logs: Folder of the jobs' logs.
        **limits: `minimum` and `maximum` number of jobs.
    """

    def __init__(
        self,
        cluster: Any,
        *,
        workers: int,
        give_back_after: float,
        listed: Callable[[], dict[str, str]] | None,
        logs: Path | None,
        **limits: Any,
    ) -> None:
        self.cluster: Any
        super().__init__(cluster, interval=_INTERVAL, wait_count=max(1, round(give_back_after / _INTERVAL)), **limits)
        self.workers_per_job, self.listed, self.logs = workers, listed, logs
        self.trouble: str | None = None
        self.states: dict[str, str] = {}
        self._arrived: set[str] = set()
        self._known_since: dict[str, float] = {}
        self._stillborn, self._looked = 0, 0.0
        self._last_log: Path | None = None

    @property
    def observed(self) -> set[Any]:
        """Jobs of which a worker is there."""
        return {self._job_of(worker["name"]) for worker in self.cluster.scheduler_info["workers"].values()}

    async def target(self) -> int:
        """Jobs that the unfinished tasks can keep busy."""
        await self._look()
        if self.trouble is not None:
            return 0
        tasks = self.cluster.scheduler.tasks.values()
        unfinished = sum(task.state not in _DONE_STATES for task in tasks)
        return math.ceil(unfinished / self.workers_per_job)

    async def workers_to_close(self, target: int) -> list[Any]:
        """Jobs none of whose workers has a task, as many as are too many."""
        busy = {self._job_of(worker.name) for worker in self.cluster.scheduler.workers.values() if worker.processing}
        idle = sorted(self.observed - busy, key=str)
        return idle[: max(0, len(self.plan) - target)]

    async def scale_down(self, workers: Any) -> None:
        """Ends jobs, their workers first."""
        gone = set(workers)
        addresses = [
            worker.address for worker in self.cluster.scheduler.workers.values() if self._job_of(worker.name) in gone
        ]
        if addresses:
            await self.scheduler.retire_workers(workers=addresses, remove=True, close_workers=True)
        await self.cluster.scale_down(workers)

    async def scale_up(self, n: Any) -> None:
        """Asks for jobs until there are `n`."""
        self.cluster.scale(jobs=n)

    def standing(self) -> str:
        """How many jobs there are and what they do, in words."""
        states: dict[str, int] = {}
        for state in self.states.values():
            states[state] = states.get(state, 0) + 1
        words = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{len(self.plan)} jobs asked for{f' ({words})' if words else ''}"

    def _job_of(self, worker: Any) -> Any:
        """The job that a worker is of: of several its name is followed by a number."""
        return (
            worker
            if worker in self.cluster.worker_spec or self.workers_per_job == 1
            else str(worker).rpartition("-")[0]
        )

    async def _look(self) -> None:
        """Sees which workers have come, and every few seconds what the queue says of the jobs."""
        here = self.observed
        if here - self._arrived:
            self._stillborn = 0
            self._arrived |= here
        now = time.monotonic()
        for name in self.cluster.workers:
            self._known_since.setdefault(name, now)
        pause = _LOOK_SECONDS if set(self.cluster.workers) - here else _QUIET_SECONDS
        if self.listed is None or now - self._looked < pause or not self.cluster.workers:
            return
        self._looked = now
        try:
            self.states = await asyncio.to_thread(self.listed)
        except ClusterError:
            # Slurm's controller has moments in which it doesn't answer: ask again later.
            return
        for name, job in list(self.cluster.workers.items()):
            if job.job_id not in self.states and now - self._known_since[name] > _GRACE:
                await self._forget(name, job)

    async def _forget(self, name: Any, job: Any) -> None:
        """Takes a job that is gone out of the cluster's books, so that another takes its place."""
        del self._known_since[name]
        self.cluster.worker_spec.pop(name, None)
        self.cluster.workers.pop(name, None)
        job.status = Status.closed
        if name in self._arrived:
            self._arrived.discard(name)
            return
        self._stillborn += 1
        log = None if self.logs is None else self.logs / f"{job.job_name}-{job.job_id}.log"
        if self._stillborn >= _STILLBORN:
            said = last_lines(log) if log is not None else ""
            self.trouble = (
                f"{self._stillborn} jobs in a row ended before a worker of theirs came"
                + (f"; the last lines of {log}: {said}" if said else "")
                + ": `slidesam cluster show` prints the job script, `slidesam doctor` tries it"
            )
