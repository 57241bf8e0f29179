"""How `slidesam doctor` gets at a worker: by the scheduler and job script of a run, one job of each part; and why none comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from slidesam.flows.cluster import slurm
from slidesam.flows.cluster.cluster import Cluster, ClusterProfile, Workers
from slidesam.flows.cluster.profile import AttachProfile, SlurmProfile, Stage
from slidesam.flows.doctor.judge import from_words, judge
from slidesam.tasks.errors import ClusterError, in_one_line
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected, Finding
from slidesam.tasks.segment.start_marks import last_lines

_LOOK_SECONDS, _POLL_SECONDS = 1.0, 0.1
# A job that was just submitted may not be in the queue's list yet.
_GRACE = 3.0
# Of a cluster that runs already, so many nodes are looked at.
_NODES = 8
_SCRIPT = (
    "`slidesam cluster show` prints the job script: see python, container, prologue and directives in the profile, and "
    "that slidesam is installed for that Python on the nodes"
)


class Visited(NamedTuple):
    """What came of a visit."""

    findings: list[Finding]
    """What was found."""
    is_mute: bool = False
    """Whether a job ended without leaving a log."""


def visit(
    profile: ClusterProfile, expected: Mapping[Stage, Expected], logs: Path | None, timeout: float
) -> dict[str, Visited]:
    """Starts what the profile says, examines a worker of each part, and ends it all.

    Args:
        profile: The profile; it starts no more than is to be visited.
        expected: What a run needs of each part.
        logs: Folder for the logs of jobs.
        timeout: Seconds to wait for workers.
    """
    found: dict[str, Visited] = {}
    with _cluster(profile, logs) as cluster, ExitStack() as ends:
        visits: list[_Visit] = []
        for part, wanted in expected.items():
            try:
                workers = cluster.workers(part)
                visits += _visits(cluster, workers, part, wanted, ends)
            except Exception as error:  # noqa: BLE001 - whatever keeps workers from starting is a finding
                found[wanted.part] = Visited([from_words(f"{wanted.part}: worker", in_one_line(error), _SCRIPT)])
        deadline = time.monotonic() + timeout
        while visits:
            is_late = time.monotonic() > deadline
            for each in list(visits):
                result = each.look(is_late, timeout)
                if result is not None:
                    found[each.expected.part] = result
                    visits.remove(each)
            time.sleep(_POLL_SECONDS)
    if logs is not None and all(each.state != "failed" for visited in found.values() for each in visited.findings):
        _remove_logs(logs, cluster.name)
    return found


def _remove_logs(logs: Path, name: str) -> None:
    """Removes what jobs wrote while all went well."""
    with suppress(OSError):
        for log in logs.glob(f"{name}-*.log"):
            log.unlink()
        logs.rmdir()


@contextmanager
def _cluster(profile: ClusterProfile, logs: Path | None) -> Iterator[Cluster]:
    """A cluster none of whose jobs is left afterwards."""
    cluster = Cluster(profile, logs)
    cluster.name = cluster.name.replace("slidesam-", "slidesam-doctor-")
    try:
        yield cluster
    finally:
        try:
            cluster.close()
        finally:
            if isinstance(profile, SlurmProfile) and slurm.has_slurm():
                with suppress(ClusterError):
                    slurm.cancel_jobs(cluster.job_names)


def _visits(cluster: Cluster, workers: Workers, part: Stage, wanted: Expected, ends: ExitStack) -> list[_Visit]:
    """Sends the question to a worker; of a cluster that runs already, to one on each node."""
    from dask.distributed import Client

    client = ends.enter_context(Client(workers.address, timeout="15s", set_as_default=False))
    name = f"{cluster.name}-{part}" if isinstance(cluster.profile, SlurmProfile) else ""
    if not isinstance(cluster.profile, AttachProfile):
        future = client.submit(examine.examine, asdict(wanted), pure=False)
        return [_Visit(wanted, future, workers, name, cluster.logs)]
    known = client.scheduler_info(n_workers=-1)["workers"]
    if not known:
        raise ClusterError(
            f"the scheduler at {workers.address} has no workers: start some, with `dask worker {workers.address} --preload "
            "slidesam.flows.cluster.on_worker --nthreads 1`"
        )
    nodes = {urlsplit(address).hostname: address for address in sorted(known)}
    found = []
    for node, address in list(nodes.items())[:_NODES]:
        mine = replace(wanted, part=f"worker on {node}")
        future = client.submit(examine.examine, asdict(mine), pure=False, workers=[address])
        found.append(_Visit(mine, future, workers, name, None, threads=known[address]["nthreads"]))
    return found


@dataclass
class _Visit:
    """A question that is on its way to a worker, which may have yet to come."""

    expected: Expected
    future: Any
    workers: Workers
    job_name: str
    """Name of the Slurm job; empty = there is none."""
    logs: Path | None
    threads: int = 1
    started: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    submitted: dict[str, float] = field(default_factory=dict)
    listed: dict[str, slurm.Job] = field(default_factory=dict)

    def look(self, is_late: bool, timeout: float) -> Visited | None:
        """What came of it; None while it isn't known."""
        if self.future.done():
            return Visited(self._answered())
        if (dead := self._dead_job()) is not None:
            return self._died(dead)
        keeper = self.workers.keeper
        if keeper is not None and keeper.trouble is not None:
            return self._failed(keeper.trouble.partition(": `slidesam")[0], _SCRIPT)
        return self._late(timeout) if is_late else None

    def _answered(self) -> list[Finding]:
        part, error = self.expected.part, self.future.exception()
        if error is not None:
            return [
                Finding(
                    f"{part}: worker", "failed", f"the worker there can't answer: {in_one_line(error, 300)}",
                    "install the same slidesam there as here, or let jobs run the same Python (`python` in the profile)",
                )
            ]  # fmt: skip
        facts = self.future.result()
        job = f"job {' '.join(self.submitted)} on {facts['host']}" if self.submitted else facts["host"]
        words = f"{job} after {time.monotonic() - self.started:.0f} s, {facts['python']}"
        found = [Finding(f"{part}: worker", "ok", words)]
        if self.threads != 1 or not facts["is_worker"]:
            what = f"{facts['host']}: started with {self.threads} threads" + (
                "" if facts["is_worker"] else " and without slidesam.flows.cluster.on_worker"
            )
            cure = "start workers with `--preload slidesam.flows.cluster.on_worker --nthreads 1`: one block at a time in each"
            found = [Finding(f"{part}: worker", "failed", what, cure)]
        return [*found, *judge(self.expected, facts)]

    def _dead_job(self) -> str | None:
        """A Slurm job that has ended although its worker was never seen."""
        now = time.monotonic()
        if not self.job_name or now - self.looked < _LOOK_SECONDS:
            return None
        self.looked = now
        ids = [job.job_id for job in list(self.workers.keeper.cluster.workers.values())]
        for each in ids:
            if each:
                self.submitted.setdefault(str(each), now)
        try:
            self.listed = {job.id: job for job in slurm.jobs_named([self.job_name])}
        except ClusterError:
            return None
        gone = (each for each, since in self.submitted.items() if each not in self.listed and now - since > _GRACE)
        return next(gone, None)

    def _died(self, job: str) -> Visited:
        if self.logs is None:
            return self._failed(f"job {job} ended before its worker came", _SCRIPT)
        log = self.logs / f"{self.job_name}-{job}.log"
        if not log.exists():
            return self._failed(
                f"job {job} ended at once, and left no log in {self.logs}",
                "give an --output that is on the nodes too and that jobs may write to: Slurm puts their logs there",
                is_mute=True,
            )
        return self._failed(f"job {job} ended before its worker came; its log ends with: {last_lines(log)}", _SCRIPT)

    def _late(self, timeout: float) -> Visited:
        what = f"no worker within {timeout:g} s"
        waiting = next((job for job in self.listed.values() if job.state == "PENDING"), None)
        running = next((job for job in self.listed.values() if job.state == "RUNNING"), None)
        if waiting is not None:
            return self._failed(
                f"{what}: job {waiting.id} is pending ({waiting.reason})",
                "nothing may be wrong: wait longer with --timeout; else choose another partition, a shorter walltime or "
                f"smaller jobs. `scontrol show job` explains {waiting.reason}",
            )
        if running is not None:
            said = last_lines(self.logs / f"{self.job_name}-{running.id}.log") if self.logs else ""
            return self._failed(
                f"{what}, though job {running.id} runs on {running.reason}"
                + (f"; its log ends with: {said}" if said else ""),
                f"see that {running.reason} reaches the Dask scheduler at {self.workers.address}: set scheduler.host or "
                "scheduler.interface in the profile, and open the firewall between them",
            )
        if self.workers.keeper is not None:
            return self._failed(f"{what}: {self.workers.keeper.standing()}", "see what the queue says of the jobs")
        return self._failed(what, "its workers are busy or hang: see the Dask dashboard, or wait longer with --timeout")

    def _failed(self, what: str, cure: str, *, is_mute: bool = False) -> Visited:
        name = f"{self.expected.part}: {'job log' if is_mute else 'worker'}"
        return Visited([Finding(name, "failed", what, cure)], is_mute)
