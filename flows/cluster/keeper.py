"""Keeps as many jobs as there is work for: requests jobs, replaces lost ones, and gives idle ones back.

dask-jobqueue's own scaling guesses from how long tasks took, so that it closes workers in the middle of a block
(https://github.com/dask/distributed/issues/4069), and it never notices a job that was cancelled while it waited in the queue.
Here one job is requested for as many tasks as its workers can have at once. Only jobs without a task are given back, and only
after a while, because the next job must queue again.

Jobs that the queue refuses (a limit, a wrong account), or that end before one of their workers connects (a wrong prologue, a bad
node), are requested again after a delay that doubles. If no worker is running at all, the keeper soon gives up and reports what
the queue or the job's log said.
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
# If no worker is running: give up after so many jobs in a row without a worker, or so many rounds in which the queue takes none.
_STILLBORN, _REFUSALS = 4, 3
_HOLD_SECONDS, _LONGEST_HOLD = 10.0, 300.0
# If the queue can't be asked, a job without a worker for so long has ended.
_LOST_SECONDS = 90.0
_DONE_STATES = ("memory", "erred", "released", "forgotten")


def kept_cluster(cluster_class: Any) -> Any:
    """Extend dask-jobqueue's class of cluster: its jobs are kept ones, and it doesn't write the cluster's keys to files."""

    class KeptCluster(cluster_class):  # type: ignore[misc]
        job_cls = _kept_job(cluster_class.job_cls)

        def _get_worker_security(self, security: Any) -> None:
            """Leave the keys in memory: the launcher is told their file itself."""

    return KeptCluster


def _kept_job(job_class: Any) -> Any:
    """Extend dask-jobqueue's class of job: it keeps the queue's message when a job is refused, and knows when it is closed."""

    class KeptJob(job_class):  # type: ignore[misc]
        refusal: str | None = None

        def __init__(self, *arguments: Any, protocol: Any = None, **options: Any) -> None:
            super().__init__(*arguments, **options)

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                self.refusal, self.status = _queue_message(error), Status.failed
                raise

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return KeptJob


def _queue_message(error: Exception) -> str:
    """Return what a queue's command printed when it failed, without the text that dask-jobqueue adds."""
    return in_one_line(str(error).rpartition("stderr:\n")[2] or error, 300)


class JobKeeper(Adaptive):
    """Controls the number of jobs of a dask-jobqueue cluster; it counts jobs where Dask counts workers.

    Args:
        cluster: The cluster.
        workers: Workers of a job.
        give_back_after: Seconds without a task after which a job is given back.
        list_jobs: Returns the state of each job that the queue knows, by id; None if the queue can't be asked.
        logs: Folder of the jobs' logs.
        **limits: `minimum` and `maximum` number of jobs.

    Attributes:
        states: Of the jobs that the queue knew when it was last asked, by id.
    """

    def __init__(
        self,
        cluster: Any,
        *,
        workers: int,
        give_back_after: float,
        list_jobs: Callable[[], dict[str, str]] | None,
        logs: Path | None,
        **limits: Any,
    ) -> None:
        self.cluster: Any
        # With a name that was used before, Dask would take a new job for the earlier one.
        numbers = itertools.count()
        cluster._new_worker_name = lambda _: f"{cluster._name}-{next(numbers)}"
        super().__init__(cluster, interval=_INTERVAL, wait_count=max(1, round(give_back_after / _INTERVAL)), **limits)
        self.workers_per_job, self.list_jobs, self.logs = workers, list_jobs, logs
        self._trouble: ClusterError | None = None
        self._troubled: tuple[Any, ...] = ()
        self.states: dict[str, str] = {}
        self._last_seen: dict[Any, float] = {}
        self._known_since: dict[Any, float] = {}
        self._stillborn = self._refusals = 0
        self._looked = self._hold_until = 0.0

    @property
    def trouble(self) -> ClusterError | None:
        """Why no worker will come for the tasks that wait; None while one may come, or once these tasks have been given up."""
        tasks = self.cluster.scheduler.tasks
        waiting = [
            task for key in self._troubled if (task := tasks.get(key)) is not None and task.state not in _DONE_STATES
        ]
        if self._troubled and not waiting:
            # The next slide of the command begins anew: the queue may take its jobs by now.
            self._trouble, self._troubled = None, ()
            self._stillborn = self._refusals = 0
        return self._trouble

    def _give_up(self, what: str, cure: str) -> None:
        """Ask for no more jobs for the tasks that there are."""
        self._trouble = ClusterError(what, cure)
        tasks = list(self.cluster.scheduler.tasks.items())
        self._troubled = tuple(key for key, task in tasks if task.state not in _DONE_STATES)

    @property
    def observed(self) -> set[Any]:
        """Jobs of which a worker is connected."""
        return {self._job_of(worker["name"]) for worker in self.cluster.scheduler_info["workers"].values()}

    async def target(self) -> int:
        """Return how many jobs the unfinished tasks can keep busy."""
        await self._look()
        if self.trouble is not None:
            return 0
        tasks = self.cluster.scheduler.tasks.values()
        unfinished = sum(task.state not in _DONE_STATES for task in tasks)
        n_jobs = math.ceil(unfinished / self.workers_per_job)
        return n_jobs if time.monotonic() >= self._hold_until else min(n_jobs, len(self.plan))

    async def safe_target(self) -> int:
        """Limit the target as Dask does, but don't request a minimum from a queue that refuses, or jobs that can't work."""
        if self.trouble is not None:
            return 0
        n_jobs = await super().safe_target()
        return n_jobs if time.monotonic() >= self._hold_until else min(n_jobs, len(self.plan))

    async def workers_to_close(self, target: int) -> list[Any]:
        """Choose the surplus jobs none of whose workers has a task."""
        busy = {self._job_of(worker.name) for worker in self.cluster.scheduler.workers.values() if worker.processing}
        idle = sorted(self.observed - busy, key=str)
        return idle[: max(0, len(self.plan) - target)]

    async def scale_down(self, workers: Any) -> None:
        """End jobs, their workers first."""
        job_names = set(workers)
        addresses = [
            worker.address
            for worker in self.cluster.scheduler.workers.values()
            if self._job_of(worker.name) in job_names
        ]
        if addresses:
            await self.scheduler.retire_workers(workers=addresses, remove=True, close_workers=True)
        for name in job_names:
            self._known_since.pop(name, None)
            self._last_seen.pop(name, None)
        await self.cluster.scale_down(workers)

    async def scale_up(self, n: Any) -> None:
        """Request jobs until there are `n`."""
        self.cluster.scale(jobs=n)

    def standing(self) -> str:
        """Describe how many jobs there are and their states."""
        states: dict[str, int] = {}
        for state in self.states.values():
            states[state] = states.get(state, 0) + 1
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{len(self.plan)} jobs requested{f' ({counts})' if counts else ''}"

    def _job_of(self, worker: Any) -> Any:
        """Return the job of a worker; with several workers per job, a number follows the job's name in theirs."""
        return (
            worker
            if worker in self.cluster.worker_spec or self.workers_per_job == 1
            else str(worker).rpartition("-")[0]
        )

    async def _look(self) -> None:
        """Note which workers have connected, and every few seconds ask the queue for the jobs' states."""
        now, connected = time.monotonic(), self.observed
        if connected - set(self._last_seen):
            self._stillborn = self._refusals = 0
        self._last_seen.update(dict.fromkeys(connected, now))
        jobs = dict(self.cluster.workers)
        for name in jobs:
            self._known_since.setdefault(name, now)
        self._forget_refused(jobs)
        if self.list_jobs is None:
            self._forget_lost(jobs, now)
            return
        pause = _LOOK_SECONDS if set(jobs) - connected else _QUIET_SECONDS
        if jobs and now - self._looked >= pause:
            self._looked = now
            await self._forget_unlisted(jobs)

    def _forget_refused(self, jobs: dict[Any, Any]) -> None:
        """Forget jobs that the queue refused."""
        refused = {name: job for name, job in jobs.items() if job.refusal is not None}
        if not refused:
            return
        message = next(iter(refused.values())).refusal
        for name in refused:
            self._forget(name)
        self._refusals += 1
        self._hold(self._refusals)
        if self._refusals >= _REFUSALS and not self.cluster.workers and not self.observed:
            cure = "`slidesam cluster show` prints the job script"
            self._give_up(f"the queue refuses jobs: {message}", cure)

    def _forget_lost(self, jobs: dict[Any, Any], now: float) -> None:
        """Forget jobs whose workers have been gone for long; without asking the queue nothing else can be known."""
        for name in jobs:
            last_seen = self._last_seen.get(name)
            if last_seen is not None and now - last_seen > _LOST_SECONDS:
                self._forget(name)

    async def _forget_unlisted(self, jobs: dict[Any, Any]) -> None:
        """Forget jobs that the queue doesn't know any more."""
        assert self.list_jobs is not None
        try:
            self.states = await asyncio.to_thread(self.list_jobs)
        except ClusterError:
            # Slurm's controller sometimes doesn't answer for a while: ask again later.
            return
        now = time.monotonic()
        for name, job in jobs.items():
            is_new = now - self._known_since.get(name, now) <= _GRACE
            # A job that was closed meanwhile is forgotten already.
            if job.job_id is None or job.job_id in self.states or is_new or self.cluster.workers.get(name) is not job:
                continue
            has_connected = name in self._last_seen
            self._forget(name)
            job.status = Status.closed
            if not has_connected:
                self._count_stillborn(job)

    def _forget(self, name: Any) -> None:
        """Remove a lost job from the cluster's records, so that another takes its place."""
        for records in (self._known_since, self._last_seen, self.cluster.worker_spec, self.cluster.workers):
            records.pop(name, None)

    def _count_stillborn(self, job: Any) -> None:
        self._stillborn += 1
        if self._stillborn < _STILLBORN:
            return
        self._hold(self._stillborn - _STILLBORN)
        if self.observed:
            return
        log = None if self.logs is None else self.logs / f"{job.job_name}-{job.job_id}.log"
        log_tail = last_lines(log) if log is not None else ""
        self._give_up(
            f"{self._stillborn} jobs in a row ended before a worker of theirs came"
            + (f"; the last lines of {log}: {log_tail}" if log_tail else ""),
            "`slidesam cluster show` prints the job script, `slidesam doctor` tries it",
        )

    def _hold(self, times: int) -> None:
        """Request no job for a while."""
        self._hold_until = time.monotonic() + min(_LONGEST_HOLD, _HOLD_SECONDS * 2 ** max(0, times - 1))
