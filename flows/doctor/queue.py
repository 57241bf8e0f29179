"""Checks of a queue for `slidesam doctor` before anything is submitted: its commands, partitions, and answer to job scripts."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from slidesam.flows.cluster.jobs import cluster_class, job_script, jobs_of, scheduler_host
from slidesam.flows.cluster.memory_steps import count_steps, describe_step, enlarge
from slidesam.flows.cluster.profile import ClusterProfile, JobProfile, QueueProfile, SlurmJobs, SlurmProfile, Stage
from slidesam.flows.doctor.finding import Finding, check
from slidesam.tasks.errors import in_one_line

_SECONDS = 60.0
_SINFO = "%P|%a|%l|%D|%G|%t"
_DOWN = ("down", "drain", "drng", "fail", "unk", "maint")


def pools_of(profile: ClusterProfile) -> list[Stage]:
    """Return the names of the worker pools of a profile."""
    has_gpu = isinstance(profile, SlurmProfile | QueueProfile) and profile.gpu is not None
    return ["cpu", "gpu"] if has_gpu else ["cpu"]


def examine_queue(profile: JobProfile) -> Iterator[Finding]:
    """Ask a queue what it answers without a job being submitted.

    Args:
        profile: A profile with jobs.
    """
    if (image := profile.container) is not None:
        cure = "build it as infra/container/README.md says, or correct `container` in the profile"
        yield check("container", (not image.exists(), "failed", f"{image} isn't here", cure), ok=str(image))
    commands = _commands(profile)
    yield commands
    if isinstance(profile, SlurmProfile) and commands.state == "ok":
        for pool in pools_of(profile):
            yield from _slurm_pool(profile, pool)


def examine_address(profile: JobProfile) -> Finding:
    """Check that the scheduler can listen where the profile says, and that other machines could reach it there."""
    name, host, taken = "scheduler", "", False
    cure = (
        "set scheduler.host or scheduler.interface in the profile to this machine's, on a network that the nodes reach"
    )
    try:
        host = scheduler_host(profile)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, profile.scheduler.port))
    except ValueError as error:
        return Finding(name, "failed", in_one_line(str(error)), cure)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if not taken:
            return Finding(name, "failed", f"{host} is no address of this machine", cure)
    free = "set scheduler.port in the profile to 0, which takes any free one"
    is_local = host.startswith("127.") or host == "::1"
    return check(
        name,
        (taken, "failed", f"port {profile.scheduler.port} of {host} is taken", free),
        (is_local, "failed", f"jobs can't reach {host}, which is only of this machine", cure),
        ok=f"listens on {host}, an address of this machine",
    )


def _commands(profile: JobProfile) -> Finding:
    """Check that the queue's commands are here."""
    job = cluster_class(profile).job_cls
    names = [job.submit_command.split()[0], job.cancel_command.split()[0]]
    names += ["squeue", "sinfo"] if isinstance(profile, SlurmProfile) else []
    missing = ", ".join(name for name in names if shutil.which(name) is None)
    cure = "run this where they are, on a login node, or give --cluster local to compute on this machine"
    return check(
        profile.kind,
        (missing, "failed", f"{missing}: not found on {socket.gethostname()}", cure),
        ok=f"{', '.join(names)} are here",
    )


class Partition(NamedTuple):
    """Some nodes of a partition that are alike, as a line of sinfo shows them.

    Attributes:
        name: Its name.
        is_default: Whether jobs that name none go there.
        is_up: Whether it takes jobs and starts them.
        limit: Longest time of a job in seconds.
        nodes: Number of nodes.
        gres: What a node has beside cores and memory: `gpu` or `gpu:TYPE`, and how many.
        state: State of the nodes.
    """

    name: str
    is_default: bool
    is_up: bool
    limit: float
    nodes: int
    gres: tuple[tuple[str, int], ...]
    state: str

    @property
    def is_usable(self) -> bool:
        """Whether its nodes will take jobs, now or later."""
        return self.is_up and self.nodes > 0 and not self.state.startswith(_DOWN)

    def offers(self, jobs: SlurmJobs) -> bool:
        """Tell whether a node has the GPUs of a job."""
        resource = f"gpu:{jobs.gpu_type}" if jobs.gpu_type else "gpu"
        return sum(n for name, n in self.gres if name == resource or name.startswith(f"{resource}:")) >= jobs.gpus


def parse_sinfo(text: str) -> list[Partition]:
    """Read what `sinfo -h -o '%P|%a|%l|%D|%G|%t'` prints.

    Example:
        >>> parse_sinfo("gpu*|up|1-00:30:00|2|gpu:a100:4(S:0-1)|idle")[0].limit
        88200.0
    """
    rows = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 5]
    return [
        Partition(name.rstrip("*"), name.endswith("*"), up == "up", _limit(limit), int(nodes), _gres(gres), state)
        for name, up, limit, nodes, gres, state in rows
    ]


def _limit(text: str) -> float:
    """Convert Slurm's days-hours:minutes:seconds to seconds; what is no time is no limit."""
    days, _, clock = text.rpartition("-")
    numbers = clock.split(":")
    if not all(number.isdigit() for number in [*numbers, days or "0"]):
        return float("inf")
    hours, minutes, seconds = (int(number) for number in ["0", "0", *numbers][-3:])
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def _gres(text: str) -> tuple[tuple[str, int], ...]:
    # The sockets behind a count, as in gpu:a100:4(S:0-1,3), hold commas too; (null) is nothing.
    entries = [entry.rpartition(":") for entry in re.sub(r"\(.*?\)", "", text).split(",")]
    return tuple((name, int(count)) for name, _, count in entries if name and count.isdigit())


def _slurm_pool(profile: SlurmProfile, pool: Stage) -> Iterator[Finding]:
    """Check the partition of a worker pool, and what Slurm says about its job script."""
    jobs = jobs_of(profile, pool)
    assert isinstance(jobs, SlurmJobs)
    code, answer = _ask("sinfo", "-h", "-o", _SINFO)
    if code:
        cure = "see that slurmctld runs, or ask the site's administrators"
        yield Finding(f"{pool}: partition", "failed", f"sinfo fails: {answer}", cure)
        return
    partition = judge_partition(pool, jobs, parse_sinfo(answer))
    yield partition
    if partition.state != "failed":
        script = _script(profile, pool)
        yield script
        if script.state == "ok" and pool == pools_of(profile)[-1]:
            yield from _larger_scripts(profile, pool)


def judge_partition(pool: Stage, jobs: SlurmJobs, everything: Sequence[Partition]) -> Finding:
    """Check that a worker pool's partition is there, and fits its jobs.

    Args:
        pool: The worker pool.
        jobs: Its jobs.
        everything: All that sinfo shows.
    """
    key, partition_names = f"{pool}.partition", ", ".join(sorted({row.name for row in everything})) or "none"
    rows = [row for row in everything if (row.name == jobs.partition if jobs.partition else row.is_default)]
    title = rows[0].name if rows else jobs.partition
    missing = f"there is no partition {title}" if title else "Slurm has no default partition"
    usable, limit = [row for row in rows if row.is_usable], rows[0].limit if rows else 0.0
    nodes = sum(row.nodes for row in usable)
    states = ", ".join(sorted({row.state if row.is_up else "partition down" for row in rows}))
    offered = ", ".join(sorted({f"{name}:{count}" for row in rows for name, count in row.gres})) or "none"
    lacks_gpus = jobs.gpus and not any(row.offers(jobs) for row in usable)
    return check(
        f"{pool}: partition",
        (not rows, "failed", f"{missing}; there are: {partition_names}", f"set {key} in the profile to one of these"),
        (
            not nodes, "failed", f"{title} has no node that takes jobs ({states})",
            f"wait for it, or set {key} to another of {partition_names}; `sinfo -R -p {title}` says why",
        ),
        (
            jobs.walltime_seconds > limit, "failed",
            f"{title} allows jobs {_walltime(limit)}; {pool}.walltime is {jobs.walltime}",
            f"lower {pool}.walltime, or set {key} to one with a higher limit",
        ),
        (
            lacks_gpus, "warning", f"no node of {title} that is up shows --gres={jobs.gres} (there is: {offered})",
            f"set {pool}.gpus and {pool}.gpu_type to what is there, or {key} to another",
        ),
        ok=f"{title} is up: {nodes} node{'s' if nodes > 1 else ''}, {_walltime(limit)}",
    )  # fmt: skip


def _walltime(seconds: float) -> str:
    return "any walltime" if seconds == float("inf") else f"a walltime of up to {seconds / 3600:.4g} h"


def _script(profile: SlurmProfile, pool: Stage) -> Finding:
    """Ask Slurm what it would do with the job script, without submitting it."""
    code, answer = _ask("sbatch", "--test-only", stdin=job_script(profile, pool, f"slidesam-doctor-{pool}"))
    keys = "partition, account, qos, cores, memory, walltime, gpus, gpu_type, directives"
    start = re.search(r"to start at (\S+)", answer)
    return check(
        f"{pool}: job script",
        (
            code, "failed", f"Slurm refuses it: {answer}",
            f"correct {pool} in the profile ({keys}); `slidesam cluster show` prints the script",
        ),
        ok=f"Slurm takes it{f', and would start it at {start[1]}' if start else ''}",
    )  # fmt: skip


def _larger_scripts(profile: SlurmProfile, pool: Stage) -> Iterator[Finding]:
    """Ask Slurm what it would do with the larger jobs of blocks that run out of memory."""
    for step in range(1, count_steps(profile, pool) + 1):
        larger, wanted = enlarge(profile, pool, step), describe_step(profile, pool, step)
        assert isinstance(larger, SlurmProfile)
        code, answer = _ask("sbatch", "--test-only", stdin=job_script(larger, pool, f"slidesam-doctor-{pool}"))
        cure = f"shorten {pool}.memory_steps in the profile; without such jobs a block that runs out of memory fails"
        refusal = f"Slurm refuses {wanted}, for blocks that run out of memory: {answer}"
        yield check(f"{pool}: more memory", (code, "warning", refusal, cure), ok=f"Slurm would take {wanted}")


def _ask(*command: str, stdin: str | None = None) -> tuple[int, str]:
    """Run a command, and return its exit code and what it prints."""
    try:
        process = subprocess.run(  # noqa: S603
            command, input=stdin, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, in_one_line(error)
    if process.returncode or not process.stdout:
        return process.returncode, in_one_line(process.stderr or process.stdout)
    return 0, process.stdout
