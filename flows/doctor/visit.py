"""Asks workers what they see: through the scheduler and job script of a run, one job for each worker pool.

1  the question goes to the scheduler of each pool (`_ask_pool`), before any worker is there
2  until a worker answers, its job is watched (`_Visit.look`)
3  the answer is judged; if none comes, what the queue, the job's log and the keeper say becomes the finding
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slidesam.flows.cluster import slurm
from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.cluster.local_workers import Workers
from slidesam.flows.cluster.profile import AttachProfile, ClusterProfile, SlurmProfile, Stage
from slidesam.flows.doctor.finding import Finding, check, failure
from slidesam.flows.doctor.judge import judge
from slidesam.tasks.errors import ClusterError, in_one_line
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected
from slidesam.tasks.segment.start_marks import last_lines

# The finding on a job that ended without a log. Slurm puts logs where the node may not have a folder.
NO_LOG = "job log"
_LOOK_SECONDS, _POLL_SECONDS = 1.0, 0.1
# A job that was just submitted may not be in the queue's list yet.
_GRACE = 3.0
# Of a cluster that runs already, so many nodes are asked.
_NODES = 8
_PRELOAD = "slidesam.flows.cluster.on_worker"
_SCRIPT = (
    "`slidesam cluster show` prints the job script: see python, container, prologue and directives in the profile, and "
    "that slidesam is installed for that Python on the nodes"
)


def visit(
    profile: ClusterProfile, expected: Mapping[Stage, Expected], logs: Path | None, timeout: float
) -> dict[str, list[Finding]]:
    """Start what the profile says, ask a worker of each pool, and end it all.

    Args:
        profile: The profile; it starts no more than is to be asked.
        expected: What a run needs of each pool.
        logs: Folder for the logs of jobs.
        timeout: Seconds to wait for workers.

    Returns:
        Findings by pool; of a cluster that runs already, by node.
    """
    results: dict[str, list[Finding]] = {}
    with _cluster(profile, logs) as cluster, ExitStack() as ends:
        visits: list[_Visit] = []
        for stage, needs in expected.items():
            try:
                visits += _ask_pool(cluster, stage, needs, ends)
            except Exception as error:  # noqa: BLE001 - whatever keeps workers from starting is a finding
                results[needs.pool] = [failure(f"{needs.pool}: worker", error, _SCRIPT)]
        deadline = time.monotonic() + timeout
        while visits:
            is_late = time.monotonic() > deadline
            for open_visit in list(visits):
                findings = open_visit.look(is_late, timeout)
                if findings is not None:
                    results[open_visit.expected.pool] = findings
                    visits.remove(open_visit)
            time.sleep(_POLL_SECONDS)
    if logs is not None and all(finding.state != "failed" for findings in results.values() for finding in findings):
        _remove_logs(logs, cluster.name)
    return results


def _remove_logs(logs: Path, name: str) -> None:
    """Remove what jobs wrote, since all went well."""
    with suppress(OSError):
        for log in logs.glob(f"{name}-*.log"):
            log.unlink()
        logs.rmdir()


@contextmanager
def _cluster(profile: ClusterProfile, logs: Path | None) -> Iterator[Cluster]:
    """Open a cluster, and leave no job of it."""
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


def _ask_pool(cluster: Cluster, stage: Stage, needs: Expected, ends: ExitStack) -> list[_Visit]:
    """Send the question to a worker; of a cluster that runs already, to one on each node."""
    workers = cluster.workers(stage)
    client = ends.enter_context(workers.connect())
    name = f"{cluster.name}-{stage}" if isinstance(cluster.profile, SlurmProfile) else ""
    if not isinstance(cluster.profile, AttachProfile):
        future = client.submit(examine.examine, asdict(needs), pure=False)
        return [_Visit(needs, future, workers, name, cluster.logs)]
    running = client.scheduler_info(n_workers=-1)["workers"]
    if not running:
        raise ClusterError(
            f"the scheduler at {workers.address} has no workers",
            f"start some, with `dask worker {workers.address} --preload {_PRELOAD} --nthreads 1`",
        )
    visits = []
    nodes = {urlsplit(address).hostname: address for address in sorted(running)}
    for node, address in list(nodes.items())[:_NODES]:
        on_node = replace(needs, pool=f"worker on {node}")
        future = client.submit(examine.examine, asdict(on_node), pure=False, workers=[address])
        visits.append(_Visit(on_node, future, workers, name, None, threads=running[address]["nthreads"]))
    return visits


@dataclass
class _Visit:
    """A question on its way to a worker, which may have yet to come."""

    expected: Expected
    future: Any
    workers: Workers
    job_name: str
    """Name of the Slurm job; empty = there is none."""
    logs: Path | None
    threads: int = 1
    start_time: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    submitted: dict[str, float] = field(default_factory=dict)
    listed_jobs: dict[str, slurm.Job] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the finding on the worker itself."""
        return f"{self.expected.pool}: worker"

    def look(self, is_late: bool, timeout: float) -> list[Finding] | None:
        """Return the findings; None while there is nothing to report."""
        if self.future.done():
            return self._judge_answer()
        if (job := self._find_dead_job()) is not None:
            return [self._report_dead(job)]
        keeper = self.workers.keeper
        if keeper is not None and keeper.trouble is not None:
            return [Finding(self.name, "failed", in_one_line(keeper.trouble.what), _SCRIPT)]
        return [self._report_late(timeout)] if is_late else None

    def _judge_answer(self) -> list[Finding]:
        error = self.future.exception()
        if error is not None:
            message = f"the worker there can't answer: {in_one_line(error, 300)}"
            cure = "install the same slidesam there as here, or let jobs run the same Python (`python` in the profile)"
            return [Finding(self.name, "failed", message, cure)]
        facts = self.future.result()
        job = f"job {' '.join(self.submitted)} on {facts['host']}" if self.submitted else facts["host"]
        preload = "" if facts["is_worker"] else f" and without {_PRELOAD}"
        worker = check(
            self.name,
            (
                self.threads != 1 or preload, "failed",
                f"{facts['host']}: started with {self.threads} threads{preload}",
                f"start workers with `--preload {_PRELOAD} --nthreads 1`: one block at a time in each",
            ),
            ok=f"{job} after {time.monotonic() - self.start_time:.0f} s, {facts['python']}",
        )  # fmt: skip
        return [worker, *judge(self.expected, facts)]

    def _find_dead_job(self) -> str | None:
        """Find a Slurm job that has ended although its worker never came."""
        now = time.monotonic()
        if not self.job_name or now - self.looked < _LOOK_SECONDS:
            return None
        self.looked = now
        for job in list(self.workers.keeper.cluster.workers.values()):
            if job.job_id:
                self.submitted.setdefault(str(job.job_id), now)
        try:
            self.listed_jobs = {job.id: job for job in slurm.list_jobs_named([self.job_name])}
        except ClusterError:
            return None
        due = [job for job, since in self.submitted.items() if now - since > _GRACE]
        return next((job for job in due if job not in self.listed_jobs), None)

    def _log_end(self, job: str, introduction: str) -> str:
        """Return the last lines of a job's log behind these words; nothing if there are none."""
        lines = last_lines(self.logs / f"{self.job_name}-{job}.log") if self.logs is not None else ""
        return f"{introduction}{lines}" if lines else ""

    def _report_dead(self, job: str) -> Finding:
        if self.logs is not None and not (self.logs / f"{self.job_name}-{job}.log").exists():
            message = f"job {job} ended at once, and left no log in {self.logs}"
            cure = "give an --output that is on the nodes too and that jobs may write to: Slurm puts their logs there"
            return Finding(f"{self.expected.pool}: {NO_LOG}", "failed", message, cure)
        log = self._log_end(job, "; its log ends with: ")
        return Finding(self.name, "failed", f"job {job} ended before its worker came{log}", _SCRIPT)

    def _report_late(self, timeout: float) -> Finding:
        keeper, address = self.workers.keeper, self.workers.address
        jobs = {job.state: job for job in reversed(self.listed_jobs.values())}
        state, cure = "", "its workers are busy or hang: see the Dask dashboard, or wait longer with --timeout"
        if (job := jobs.get("PENDING")) is not None:
            state = f": job {job.id} is pending ({job.reason})"
            cure = (
                "nothing may be wrong: wait longer with --timeout; else choose another partition, a shorter walltime or "
                f"smaller jobs. `scontrol show job` explains {job.reason}"
            )
        elif (job := jobs.get("RUNNING")) is not None:
            state = f", though job {job.id} runs on {job.reason}{self._log_end(job.id, '; its log ends with: ')}"
            cure = (
                f"see that {job.reason} reaches the Dask scheduler at {address}: set scheduler.host or scheduler.interface "
                "in the profile, and open the firewall between them"
            )
        elif keeper is not None:
            state, cure = f": {keeper.standing()}", "see what the queue says of the jobs"
        return Finding(self.name, "failed", f"no worker within {timeout:g} s{state}", cure)
