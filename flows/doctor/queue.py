"""What `slidesam doctor` sees of a queue before anything is submitted: commands, partitions, what it says to job scripts."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from slidesam.flows.cluster.jobs import cluster_class, job_script, jobs_of, scheduler_host
from slidesam.flows.cluster.profile import ClusterProfile, JobProfile, QueueProfile, SlurmJobs, SlurmProfile, Stage
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.folder.examine import Finding

_SECONDS = 60.0
_SINFO = "%P|%a|%l|%D|%G|%t"
_DOWN = ("down", "drain", "drng", "fail", "unk", "maint")


def parts_of(profile: ClusterProfile) -> list[Stage]:
    """The parts of a profile that have workers of their own."""
    has_gpu = isinstance(profile, SlurmProfile | QueueProfile) and profile.gpu is not None
    return ["cpu", "gpu"] if has_gpu else ["cpu"]


def examine_queue(profile: JobProfile) -> Iterator[Finding]:
    """What can be asked of a queue without submitting anything.

    Args:
        profile: A profile with jobs.
    """
    if profile.container is not None:
        yield _container(profile)
    commands = _commands(profile)
    yield commands
    if isinstance(profile, SlurmProfile) and commands.state == "ok":
        for part in parts_of(profile):
            yield from _slurm_part(profile, part)


def _container(profile: JobProfile) -> Finding:
    assert profile.container is not None
    if not profile.container.exists():
        return Finding(
            "container", "failed", f"{profile.container} isn't here",
            "build it as infra/container/README.md says, or correct `container` in the profile",
        )  # fmt: skip
    return Finding("container", "ok", str(profile.container))


def examine_address(profile: JobProfile) -> Finding:
    """Whether the scheduler can listen where the profile says, and others could reach it there."""
    cure = (
        "set scheduler.host or scheduler.interface in the profile to this machine's, on a network that the nodes reach"
    )
    try:
        host = scheduler_host(profile)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, profile.scheduler.port))
    except ValueError as error:
        return Finding("scheduler", "failed", in_one_line(str(error)), cure)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"port {profile.scheduler.port} of {host} is taken"
            return Finding(
                "scheduler", "failed", what, "set scheduler.port in the profile to 0, which takes any free one"
            )
        return Finding("scheduler", "failed", f"{host} is no address of this machine", cure)
    if host.startswith("127.") or host == "::1":
        return Finding("scheduler", "failed", f"jobs can't reach {host}, which is only of this machine", cure)
    return Finding("scheduler", "ok", f"listens on {host}, an address of this machine")


def _commands(profile: JobProfile) -> Finding:
    """Whether the queue's commands are here."""
    job = cluster_class(profile).job_cls
    names = [job.submit_command.split()[0], job.cancel_command.split()[0]]
    names += ["squeue", "sinfo"] if isinstance(profile, SlurmProfile) else []
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        what = f"{', '.join(missing)}: not found on {socket.gethostname()}"
        cure = "run this where they are, on a login node, or give --cluster local to compute on this machine"
        return Finding(profile.kind, "failed", what, cure)
    return Finding(profile.kind, "ok", f"{', '.join(names)} are here")


class Partition(NamedTuple):
    """Some nodes of a partition that are alike, as a line of sinfo shows them."""

    name: str
    """Its name."""
    is_default: bool
    """Whether jobs that name none go there."""
    is_up: bool
    """Whether it takes jobs and starts them."""
    limit: float
    """Longest time of a job in seconds."""
    nodes: int
    """How many there are."""
    gres: tuple[tuple[str, int], ...]
    """What a node has beside cores and memory: `gpu` or `gpu:TYPE`, and how many."""
    state: str
    """Of the nodes."""

    @property
    def is_usable(self) -> bool:
        """Whether its nodes will take jobs, now or later."""
        return self.is_up and self.nodes > 0 and not self.state.startswith(_DOWN)

    def offers(self, jobs: SlurmJobs) -> bool:
        """Whether a node has the GPUs of a job."""
        wanted = f"gpu:{jobs.gpu_type}" if jobs.gpu_type else "gpu"
        return sum(n for name, n in self.gres if name == wanted or name.startswith(f"{wanted}:")) >= jobs.gpus


def parse_sinfo(text: str) -> list[Partition]:
    """What `sinfo -h -o '%P|%a|%l|%D|%G|%t'` says.

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
    """Seconds of Slurm's days-hours:minutes:seconds; what is no time is no limit."""
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


def _slurm_part(profile: SlurmProfile, part: Stage) -> Iterator[Finding]:
    """The partition of a part of the profile, and what Slurm says to its job script."""
    jobs = jobs_of(profile, part)
    assert isinstance(jobs, SlurmJobs)
    code, said = _ask("sinfo", "-h", "-o", _SINFO)
    if code:
        cure = "see that slurmctld runs, or ask the site's administrators"
        yield Finding(f"{part}: partition", "failed", f"sinfo fails: {said}", cure)
        return
    partition = judge_partition(part, jobs, parse_sinfo(said))
    yield partition
    if partition.state != "failed":
        yield _script(profile, part)


def judge_partition(part: Stage, jobs: SlurmJobs, everything: Sequence[Partition]) -> Finding:
    """Whether a part's partition is there, and fits its jobs.

    Args:
        part: The part.
        jobs: Its jobs.
        everything: All that sinfo shows.
    """
    name, key = f"{part}: partition", f"{part}.partition"
    rows = [row for row in everything if (row.name == jobs.partition if jobs.partition else row.is_default)]
    others = ", ".join(sorted({row.name for row in everything})) or "none"
    if not rows:
        what = f"there is no partition {jobs.partition}" if jobs.partition else "Slurm has no default partition"
        return Finding(name, "failed", f"{what}; there are: {others}", f"set {key} in the profile to one of these")
    title, nodes = rows[0].name, sum(row.nodes for row in rows if row.is_usable)
    if not nodes:
        states = ", ".join(sorted({row.state if row.is_up else "partition down" for row in rows}))
        cure = f"wait for it, or set {key} to another of {others}; `sinfo -R -p {title}` says why"
        return Finding(name, "failed", f"{title} has no node that takes jobs ({states})", cure)
    if jobs.walltime_seconds > rows[0].limit:
        what = f"{title} allows jobs {_walltime(rows[0].limit)}; {part}.walltime is {jobs.walltime}"
        return Finding(name, "failed", what, f"lower {part}.walltime, or set {key} to one with a higher limit")
    if jobs.gpus and not any(row.is_usable and row.offers(jobs) for row in rows):
        offered = ", ".join(sorted({f"{name}:{count}" for row in rows for name, count in row.gres})) or "none"
        what = f"no node of {title} that is up shows --gres={jobs.gres} (there is: {offered})"
        return Finding(
            name, "warning", what, f"set {part}.gpus and {part}.gpu_type to what is there, or {key} to another"
        )
    return Finding(name, "ok", f"{title} is up: {nodes} node{'s' if nodes > 1 else ''}, {_walltime(rows[0].limit)}")


def _walltime(seconds: float) -> str:
    return "any walltime" if seconds == float("inf") else f"a walltime of up to {seconds / 3600:.4g} h"


def _script(profile: SlurmProfile, part: Stage) -> Finding:
    """What Slurm would do with the job script, which it isn't given yet."""
    name, script = f"{part}: job script", job_script(profile, part, f"slidesam-doctor-{part}")
    code, said = _ask("sbatch", "--test-only", given=script)
    if code:
        keys = "partition, account, qos, cores, memory, walltime, gpus, gpu_type, directives"
        cure = f"correct {part} in the profile ({keys}); `slidesam cluster show` prints the script"
        return Finding(name, "failed", f"Slurm refuses it: {said}", cure)
    start = re.search(r"to start at (\S+)", said)
    return Finding(name, "ok", f"Slurm takes it{f', and would start it at {start[1]}' if start else ''}")


def _ask(*command: str, given: str | None = None) -> tuple[int, str]:
    """Exit code of a command and what it says."""
    try:
        done = subprocess.run(  # noqa: S603
            command, input=given, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, in_one_line(error)
    if done.returncode or not done.stdout:
        return done.returncode, in_one_line(done.stderr or done.stdout)
    return 0, done.stdout
