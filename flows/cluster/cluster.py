"""Starts what computes blocks: worker processes of this machine, jobs of a queue, or nothing if a Dask cluster runs already.

A profile says which. Workers start when a stage first asks for their address, so that a run that finds all results starts
nothing. Jobs are submitted as long as there is work for them, and those of the `gpu` pool end when segmenting ends. Blocks that
ran out of memory get workers of their own, with more of it (`memory_steps`).
"""

from __future__ import annotations

import getpass
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slidesam.flows.cluster.attach import attach
from slidesam.flows.cluster.device_workers import address_towards
from slidesam.flows.cluster.job_names import make_cluster_name
from slidesam.flows.cluster.jobs import cluster_class, job_options, jobs_of, scheduler_host, scheduler_options
from slidesam.flows.cluster.keys import KEYS, make_key_folder, make_security, write_keys
from slidesam.flows.cluster.links import LOOPBACK, link_file, read_page
from slidesam.flows.cluster.local_workers import Workers, start_local, start_local_gpu
from slidesam.flows.cluster.memory_steps import count_steps, enlarge
from slidesam.flows.cluster.profile import (
    AttachProfile,
    ClusterProfile,
    JobProfile,
    LocalGpuProfile,
    LocalProfile,
    QueueProfile,
    SlurmProfile,
    Stage,
)
from slidesam.tasks.errors import ClusterError, in_one_line

# Settings of Dask while a cluster is open.
_SETTINGS = {
    # A nanny needs this long to replace a worker that was killed.
    "distributed.deploy.lost-worker-timeout": "60s",
    # Schedulers and workers open a port for HTTP before they can be told to close it (on_scheduler, on_worker).
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # What Prefect's task runner would log.
    "distributed.dashboard.link": "",
    # Its logs for developers keep the last thousand messages each, tasks and all: 1 to 3 MiB per slide for the first 30 slides.
    "distributed.admin.low-level-log-length": 50,
    "distributed.diagnostics.computations.max-history": 5,
    # Its profiler looks at each worker 100 times a second, and its trees grow with each slide.
    "distributed.worker.profile.enabled": False,
}


class Cluster:
    """The workers of a profile; each pool starts when a stage first asks for it.

    Args:
        profile: What to start.
        logs: Folder for the logs of jobs, on a file system that all nodes share.
    """

    def __init__(self, profile: ClusterProfile, logs: Path | None = None) -> None:
        self.profile, self.logs = profile, logs
        self.name = make_cluster_name(logs)
        self._started: dict[str, Workers] = {}
        self._settings = ExitStack()
        self._secrets: Path | None = None
        self._keys: str | None = None

    def workers(self, stage: Stage = "cpu", step: int = 0) -> Workers:
        """Return the workers of a stage; start them if they don't run.

        Args:
            stage: The stage.
            step: The step of their memory; 0 = what the profile says.

        Raises:
            ClusterError: They can't be started or reached.
        """
        pool = self._pool_name(stage, step)
        if not self._started:
            import dask
            import distributed  # noqa: F401 (sets its defaults first; otherwise they would go with the settings below)

            self._settings.enter_context(dask.config.set(_SETTINGS))
        if pool not in self._started:
            self._started[pool] = self._start(self.pool(stage), step)
        return self._started[pool]

    @property
    def address(self) -> str:
        """Address of the scheduler of the stages that need no accelerator."""
        return self.workers().address

    def pool(self, stage: Stage) -> Stage:
        """Return the pool of the profile that a stage uses: `cpu` if there is one pool for all stages."""
        has_two = isinstance(self.profile, SlurmProfile | QueueProfile) and self.profile.gpu is not None
        return stage if has_two else "cpu"

    @property
    def most_workers(self) -> int | None:
        """The largest number of workers of a stage; None if it isn't known."""
        profile = self.profile
        if isinstance(profile, LocalProfile):
            return profile.n_workers
        if isinstance(profile, SlurmProfile | QueueProfile):
            return max(jobs.maximum_jobs * jobs.workers for jobs in (profile.cpu, profile.gpu) if jobs is not None)
        return None

    @property
    def job_names(self) -> list[str]:
        """Names of this cluster's jobs in the queue, now or later; empty if it has no jobs."""
        if not isinstance(self.profile, SlurmProfile | QueueProfile):
            return []
        pools: list[Stage] = [pool for pool in ("cpu", "gpu") if self.pool(pool) == pool]
        # Blocks are computed by the last of them.
        steps = range(1, count_steps(self.profile, pools[-1]) + 1)
        return [f"{self.name}-{name}" for name in [*pools, *(self._pool_name(pools[-1], step) for step in steps)]]

    def _pool_name(self, stage: Stage, step: int) -> str:
        return f"{self.pool(stage)}-step{step}" if step else self.pool(stage)

    @property
    def dashboards(self) -> dict[str, str]:
        """Web pages of the running schedulers, by pool."""
        return {pool: workers.dashboard for pool, workers in self._started.items() if workers.dashboard is not None}

    def end_pool(self, stage: Stage) -> None:
        """End the jobs of a stage at once, whatever `give_back_after` says, unless other stages use them, too."""
        if self.pool(stage) == stage and stage != "cpu":
            self._end(stage)

    def make_room(self, stage: Stage, step: int) -> None:
        """End what would lie idle beside the workers of the next step: GPU jobs, and workers whose memory that step needs."""
        if step or not isinstance(self.profile, SlurmProfile | QueueProfile):
            self._end(self._pool_name(stage, step))
        else:
            self.end_pool(stage)

    def end_steps(self) -> None:
        """End all workers that have more memory than the profile says."""
        for pool in [pool for pool in self._started if pool not in ("cpu", "gpu")]:
            self._end(pool)

    def _end(self, pool: str) -> None:
        if pool in self._started:
            self._started.pop(pool).end()
            link = link_file(self._secrets, pool) if self._secrets is not None else None
            if link is not None:
                # It leads nowhere from now on.
                link.unlink(missing_ok=True)

    def find_out_of_memory(self, jobs: Collection[str]) -> set[str]:
        """Return which jobs Slurm ended for their memory, as far as it still knows them; empty for other queues."""
        if not jobs or not isinstance(self.profile, SlurmProfile):
            return set()
        from slidesam.flows.cluster import slurm

        try:
            return slurm.list_out_of_memory(self.job_names) & set(jobs)
        except ClusterError:
            # Slurm doesn't answer: the blocks count as having ended their workers for whatever reason.
            return set()

    def trouble(self) -> ClusterError | None:
        """Return the reason why no worker will come for tasks that wait; None as long as one may come."""
        keepers = [workers.keeper for workers in self._started.values() if workers.keeper is not None]
        return next((keeper.trouble for keeper in keepers if keeper.trouble is not None), None)

    def replace_lost(self) -> None:
        """Start workers in place of those that nobody else replaces; it costs nothing if there are none."""
        for workers in self._started.values():
            workers.replace_lost()

    def standing(self) -> str:
        """Describe the state of the jobs; empty if there are none."""
        keepers = {pool: workers.keeper for pool, workers in self._started.items() if workers.keeper is not None}
        return "; ".join(f"{pool}: {keeper.standing()}" for pool, keeper in keepers.items())

    def close(self) -> None:
        """End everything that was started."""
        with ExitStack() as ends:
            ends.callback(self._settings.close)
            for workers in self._started.values():
                ends.callback(workers.end)
            self._started = {}

    def _start(self, pool: Stage, step: int) -> Workers:
        profile = enlarge(self.profile, pool, step)
        if isinstance(profile, AttachProfile):
            return attach(profile)
        name = self._pool_name(pool, step)
        link = link_file(self._secret_folder(), name) if profile.dashboard else None
        if isinstance(profile, LocalProfile):
            return start_local(profile, link)
        if isinstance(profile, LocalGpuProfile):
            return start_local_gpu(profile, link)
        folder = self._secret_folder()
        if self._keys is None:
            self._keys = write_keys(folder)
        return _jobs(profile, pool, f"{self.name}-{name}", self.logs, folder / KEYS, self._keys, link, step)

    def _secret_folder(self) -> Path:
        """Return the folder for the cluster's secrets; make it if it isn't there."""
        if self._secrets is None:
            self._secrets = make_key_folder(self.logs or Path.home() / ".slidesam", self.name)
            self._settings.callback(shutil.rmtree, self._secrets, ignore_errors=True)
        return self._secrets


def _jobs(
    profile: JobProfile, pool: Stage, name: str, logs: Path | None, file: Path, keys: str, link: Path | None, step: int
) -> Workers:
    """Start a scheduler in this process, whose workers come in jobs.

    Args:
        profile: The profile.
        pool: Which of its jobs.
        name: The jobs' name.
        logs: Folder of the jobs' logs.
        file: File with the key of this scheduler and its workers, for the jobs.
        keys: What is in it; not read again, since others may be able to put another file there.
        link: File for the link of the dashboard; None = there is no dashboard.
        step: The step of the jobs' memory.

    Raises:
        ClusterError: The queue's commands are missing, or the scheduler can't listen at the profile's address.
    """
    from slidesam.flows.cluster import slurm
    from slidesam.flows.cluster.keeper import JobKeeper, kept_cluster

    jobs, is_slurm = jobs_of(profile, pool), isinstance(profile, SlurmProfile)
    if is_slurm and not slurm.has_slurm():
        raise ClusterError(
            f"Slurm's commands aren't here on {socket.gethostname()}", "run this on a login or compute node"
        )
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    stack, kind = ExitStack(), kept_cluster(cluster_class(profile))
    if is_slurm:
        # Called last: cancels jobs that were submitted while the others were cancelled.
        stack.callback(_cancel, name)
    security = make_security(keys)
    options = job_options(profile, pool, name, logs, file) | {
        "name": name,
        "security": security,
        "scheduler_options": scheduler_options(profile, pool, link, step),
    }
    cluster = _start_scheduler(stack, kind, options)
    # Made on the cluster's own event loop, where it also runs.
    keeper = cluster.adapt(
        Adaptive=JobKeeper,
        minimum=jobs.minimum_jobs,
        maximum=jobs.maximum_jobs,
        workers=jobs.workers,
        give_back_after=profile.give_back_after,
        list_jobs=partial(_states, name) if is_slurm else None,
        logs=logs,
    )
    return Workers(str(cluster.scheduler_address), security, read_page(link), stack.close, keeper)


def _start_scheduler(stack: ExitStack, kind: Any, options: dict[str, Any]) -> Any:
    """Start a cluster without workers, which the stack ends; it ends all that it holds if that fails."""
    try:
        return stack.enter_context(kind(n_workers=0, **options))
    except (OSError, RuntimeError, ValueError) as error:
        stack.close()
        raise ClusterError(
            f"the Dask scheduler can't be started on {socket.gethostname()}: {in_one_line(error)}",
            "see `scheduler` and `interface` in the profile",
        ) from error


def _cancel(name: str) -> None:
    """Cancel the remaining jobs of a name, if Slurm answers."""
    from slidesam.flows.cluster import slurm

    with suppress(ClusterError):
        slurm.cancel_jobs([name], wait=0)


def _states(name: str) -> dict[str, str]:
    """Return the state of each job of a name, by its number."""
    from slidesam.flows.cluster import slurm

    return {
        job.id: f"{job.state.lower()}{f': {job.reason}' if job.state == 'PENDING' else ''}"
        for job in slurm.list_jobs_named([name])
    }


def ssh_line(dashboard: str) -> str:
    """Return the command that shows a dashboard of this machine elsewhere, at http://localhost:PORT/status."""
    address = urlsplit(dashboard)
    port = address.port or 8787
    return f"ssh -N -L {port}:{address.hostname}:{port} {getpass.getuser()}@{socket.gethostname()}"


def api_host(profile: ClusterProfile) -> str:
    """Return the address at which all workers can reach a Prefect server of this machine."""
    if isinstance(profile, AttachProfile):
        return address_towards(profile.address)
    return scheduler_host(profile) if isinstance(profile, SlurmProfile | QueueProfile) else LOOPBACK


@contextmanager
def open_cluster(profile: ClusterProfile, logs: Path | None = None) -> Iterator[Cluster]:
    """Make the cluster of a profile, and close it at the end.

    Args:
        profile: What to start, once its workers are asked for.
        logs: Folder for the logs of jobs, on a file system that all nodes share.
    """
    cluster = Cluster(profile, logs)
    try:
        yield cluster
    finally:
        cluster.close()


__all__ = ["AttachProfile", "Cluster", "ClusterProfile", "LocalProfile", "open_cluster"]
