"""Keeps as many jobs as there is work for: asks for them, replaces those that are gone, gives back those that are idle.

dask-jobqueue's own scaling guesses from how long tasks took, so that it closes workers in the middle of a block, and never
misses a job that was cancelled while it waited in the queue. Here a job is wanted for as many tasks as its workers can have at
once; only jobs without a task are given back, and after a while only, for who gives a job back has to queue for the next.

Jobs that the queue refuses (a limit, a wrong account), or that end before a worker of theirs has come (a wrong prologue, a bad
node), are asked for again after a while that doubles. Where nobody computes at all that is given up soon, with what was said.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.core import Status
from distributed.deploy.adaptive import Adaptive

from slidesam.tasks.errors import ClusterError, in_one_line
from slidesam.tasks.segment.start_marks import last_lines

_INTERVAL = 1.0
# Between two looks at the queue: while jobs wait in it, and while all are at work.
_LOOK_SECONDS, _QUIET_SECONDS = 5.0, 30.0
# A job that was just submitted may not be in the queue's list yet.
_GRACE = 5.0
# So many jobs in a row that end before a worker comes, or rounds in which the queue takes none, are too many if nobody computes.
_STILLBORN, _REFUSALS = 4, 3
_HOLD_SECONDS, _LONGEST_HOLD = 10.0, 300.0
# Of a queue that can't be asked, a job without a worker for so long has ended.
_LOST_SECONDS = 90.0
_DONE_STATES = ("memory", "erred", "released", "forgotten")


def kept_job(job_class: Any) -> Any:
    """dask-jobqueue's class of job, which keeps what the queue said as it refused one, and knows when it is closed."""

    class KeptJob(job_class):  # type: ignore[misc]
        refused: str | None = None

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                self.refused, self.status = _said(error), Status.failed
                raise

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return KeptJob


def _said(error: Exception) -> str:
    """What a queue's command said as it failed, without what dask-jobqueue says around it."""
    return in_one_line(str(error).rpartition("stderr:\n")[2] or error, 300)


class JobKeeper(Adaptive):
    """The number of jobs of a dask-jobqueue cluster, in jobs where Dask counts workers.

    Args:
        cluster: The cluster.
        workers: Workers of a job.
        give_back_after: Seconds without a task after which a job is given back.
        listed: Says which jobs the queue knows, by id, and what they do; None where that can't be asked.
        logs: Folder of the jobs' logs.
        **limits: `minimum` and `maximum` number of jobs.

    Attributes:
        trouble: Why no worker will come; None while one may.
        states: Of the jobs that the queue knew when it was last asked, by id.
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
        # Names that come again would let Dask's books take a new job for the one that had its name.
        numbers = itertools.count()
        cluster._new_worker_name = lambda _: f"{cluster._name}-{next(numbers)}"
        super().__init__(cluster, interval=_INTERVAL, wait_count=max(1, round(give_back_after / _INTERVAL)), **limits)
        self.workers_per_job, self.listed, self.logs = workers, listed, logs
        self.trouble: ClusterError | None = None
        self.states: dict[str, str] = {}
        self._last_seen: dict[Any, float] = {}
        self._known_since: dict[Any, float] = {}
        self._stillborn = self._refusals = 0
        self._looked = self._hold_until = 0.0

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
        wanted = math.ceil(unfinished / self.workers_per_job)
        return wanted if time.monotonic() >= self._hold_until else min(wanted, len(self.plan))

    async def safe_target(self) -> int:
        """As Dask's, but a minimum is no reason to ask a queue that refuses, or for jobs that can't work."""
        if self.trouble is not None:
            return 0
        wanted = await super().safe_target()
        return wanted if time.monotonic() >= self._hold_until else min(wanted, len(self.plan))

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
        for name in gone:
            self._known_since.pop(name, None)
            self._last_seen.pop(name, None)
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
        now, here = time.monotonic(), self.observed
        if here - set(self._last_seen):
            self._stillborn = self._refusals = 0
        self._last_seen.update(dict.fromkeys(here, now))
        jobs = dict(self.cluster.workers)
        for name in jobs:
            self._known_since.setdefault(name, now)
        self._forget_refused(jobs)
        if self.listed is None:
            self._forget_lost(jobs, now)
            return
        pause = _LOOK_SECONDS if set(jobs) - here else _QUIET_SECONDS
        if jobs and now - self._looked >= pause:
            self._looked = now
            await self._forget_unlisted(jobs)

    def _forget_refused(self, jobs: dict[Any, Any]) -> None:
        """Takes out jobs that the queue didn't take."""
        refused = {name: job for name, job in jobs.items() if job.refused is not None}
        if not refused:
            return
        said = next(iter(refused.values())).refused
        for name in refused:
            self._forget(name)
        self._refusals += 1
        self._hold(self._refusals)
        if self._refusals >= _REFUSALS and not self.cluster.workers and not self.observed:
            cure = "`slidesam cluster show` prints the job script"
            self.trouble = ClusterError(f"the queue refuses jobs: {said}", cure)

    def _forget_lost(self, jobs: dict[Any, Any], now: float) -> None:
        """Takes out jobs whose workers have been gone for long: all that can be known without asking the queue."""
        for name in jobs:
            seen = self._last_seen.get(name)
            if seen is not None and now - seen > _LOST_SECONDS:
                self._forget(name)

    async def _forget_unlisted(self, jobs: dict[Any, Any]) -> None:
        """Takes out jobs that the queue doesn't know any more."""
        assert self.listed is not None
        try:
            self.states = await asyncio.to_thread(self.listed)
        except ClusterError:
            # Slurm's controller has moments in which it doesn't answer: ask again later.
            return
        now = time.monotonic()
        for name, job in jobs.items():
            is_new = now - self._known_since.get(name, now) <= _GRACE
            # What was closed meanwhile isn't there to forget.
            if job.job_id is None or job.job_id in self.states or is_new or self.cluster.workers.get(name) is not job:
                continue
            arrived = name in self._last_seen
            self._forget(name)
            job.status = Status.closed
            if not arrived:
                self._count_stillborn(job)

    def _forget(self, name: Any) -> None:
        """Takes a job that is gone out of the cluster's books, so that another takes its place."""
        for books in (self._known_since, self._last_seen, self.cluster.worker_spec, self.cluster.workers):
            books.pop(name, None)

    def _count_stillborn(self, job: Any) -> None:
        self._stillborn += 1
        if self._stillborn < _STILLBORN:
            return
        self._hold(self._stillborn - _STILLBORN)
        if self.observed:
            return
        log = None if self.logs is None else self.logs / f"{job.job_name}-{job.job_id}.log"
        said = last_lines(log) if log is not None else ""
        self.trouble = ClusterError(
            f"{self._stillborn} jobs in a row ended before a worker of theirs came"
            + (f"; the last lines of {log}: {said}" if said else ""),
            "`slidesam cluster show` prints the job script, `slidesam doctor` tries it",
        )

    def _hold(self, times: int) -> None:
        """Asks for no job for a while."""
        self._hold_until = time.monotonic() + min(_LONGEST_HOLD, _HOLD_SECONDS * 2 ** max(0, times - 1))
