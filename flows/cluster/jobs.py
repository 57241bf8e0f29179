"""Turns a profile into what dask-jobqueue takes: the class of cluster, its options, and the job script that results.

dask-jobqueue writes and submits the script; its worker command is `slidesam.flows.cluster.device_workers`, which pins
workers to the job's devices. Nothing here starts anything.
"""

from __future__ import annotations

import math
import shlex
import signal
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from slidesam.flows.cluster.keys import KEYS
from slidesam.flows.cluster.links import dashboard_options
from slidesam.flows.cluster.profile import JobProfile, Jobs, QueueJobs, SlurmJobs, SlurmProfile, Stage
from slidesam.tasks.errors import ClusterError
from slidesam.tasks.run.service_folders import key_folder

LEAVE_AT, STAGGER, LOG = "SLIDESAM_LEAVE_AT", "SLIDESAM_LEAVE_STAGGER", "SLIDESAM_LOG"
_WORKERS = "slidesam.flows.cluster.device_workers"
_CLASSES = {
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster",
    "htcondor": "HTCondorCluster", "oar": "OARCluster", "moab": "MoabCluster",
}  # fmt: skip
# Of Dask's configuration: dask-jobqueue's own defaults, whatever else is configured for the kind of queue.
_SECTION = "slidesam-"


def cluster_class(profile: JobProfile) -> Any:
    """Return dask-jobqueue's class of cluster for a profile."""
    # Its import makes Ctrl-C end the process silently (dask_jobqueue/runner.py).
    handler = signal.getsignal(signal.SIGINT)
    import dask
    import dask_jobqueue

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    # What a profile leaves open would come from a person's or a site's configuration of Dask, which was written for other work.
    defaults = yaml.safe_load(Path(dask_jobqueue.__file__).with_name("jobqueue.yaml").read_text("utf-8"))
    dask.config.set({f"jobqueue.{_SECTION}{profile.kind}": defaults["jobqueue"][profile.kind]})
    return getattr(dask_jobqueue, _CLASSES[profile.kind])


def jobs_of(profile: JobProfile, stage: Stage) -> Jobs:
    """Return the jobs of a stage's worker pool."""
    return profile.gpu if stage == "gpu" and profile.gpu is not None else profile.cpu


def job_options(profile: JobProfile, stage: Stage, name: str, logs: Path | None, keys: Path) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's job.

    Args:
        profile: The profile.
        stage: Which of its jobs.
        name: The jobs' name.
        logs: Folder of the jobs' logs, on a file system that all nodes share.
        keys: File of the cluster's key, likewise. A queue may show scripts to others: they hold the file's name only.
    """
    jobs = jobs_of(profile, stage)
    options: dict[str, Any] = {
        "config_name": f"{_SECTION}{profile.kind}",
        "cores": jobs.cores,
        # As one worker: there are no groups of workers in dask-jobqueue's books, which would never miss one that is gone.
        "processes": 1,
        # GiB: what is written as GB is rounded to less.
        "memory": f"{jobs.memory:g}GiB",
        "interface": profile.interface,
        "local_directory": '"${TMPDIR:-/tmp}"'
        if profile.local_directory is None
        else shlex.quote(profile.local_directory),
        "death_timeout": profile.death_timeout,
        "worker_command": _WORKERS,
        "worker_extra_args": [
            *("--workers", str(jobs.workers), "--gpus", str(jobs.gpus)),
            *("--keys", shlex.quote(str(keys))),
        ],
        "python": _python(profile, jobs),
        "job_name": name,
        "job_script_prologue": [*jobs.prologue, *_exports(jobs, isinstance(jobs, SlurmJobs), name, logs)],
        "job_extra_directives": list(jobs.directives),
    }
    if isinstance(jobs, SlurmJobs):
        options |= _slurm_options(jobs, name, logs, _memory_directives(profile, jobs))
    else:
        assert isinstance(jobs, QueueJobs)
        options["log_directory"] = None if logs is None else str(logs)
        options |= _queue_options(profile.kind, jobs) | dict(jobs.options)
    _refuse_line_ends(
        {name: value for name, value in options.items() if name not in ("job_script_prologue", "env_extra")}
    )
    return options


def _refuse_line_ends(options: object, place: str = "") -> None:
    """Refuse options whose rest a shell would take for a command of the job script: those with a line end in them.

    Raises:
        ClusterError: One has a line end, or another control character.
    """
    if isinstance(options, dict):
        for name, value in options.items():
            _refuse_line_ends(value, str(name))
    elif isinstance(options, list | tuple):
        for value in options:
            _refuse_line_ends(value, place)
    elif isinstance(options, str | Path) and (
        odd := [letter for letter in str(options) if unicodedata.category(letter) == "Cc"]
    ):
        raise ClusterError(
            f"{str(options)!r} ({place}) has the character {odd[0]!r} in it, and would be a part of the job script",
            "correct the profile, or name the output folder without it",
        )


def job_script(profile: JobProfile, stage: Stage, name: str = "slidesam", logs: Path | None = None) -> str:
    """Return the script that would be submitted, with stand-ins for what is known only then."""
    keys = key_folder(logs or Path("FOLDER"), name.removesuffix(f"-{stage}")) / KEYS
    job = cluster_class(profile).job_cls(
        "tls://SCHEDULER:PORT", name=f"{name}-0", **job_options(profile, stage, name, logs, keys)
    )
    return str(job.job_script())


def _memory_directives(profile: JobProfile, jobs: Jobs) -> list[str]:
    """Return what takes the place of --mem on sites that refuse it, in MiB of a core, rounded up."""
    if not (isinstance(profile, SlurmProfile) and profile.memory_per_cpu):
        return []
    return [f"--mem-per-cpu={math.ceil(jobs.memory * 1024 / jobs.cores)}M"]


def _slurm_options(jobs: SlurmJobs, name: str, logs: Path | None, memory: list[str]) -> dict[str, Any]:
    directives = [
        *memory,
        *([f"--qos={jobs.qos}"] if jobs.qos else []),
        *([f"--gres={jobs.gres}"] if jobs.gres else []),
        # One file for both streams, whose name follows from the job's.
        *([f'--output="{_pattern(logs)}/%x-%j.log"'] if logs is not None else []),
        # If Slurm started a job again by itself, the keeper would not know the new one.
        "--no-requeue",
        *jobs.directives,
    ]
    return {
        # The worker's threads, which are one; the job's cores are `job_cpu`.
        "cores": 1,
        "job_cpu": jobs.cores,
        "queue": jobs.partition,
        "account": jobs.account,
        "walltime": jobs.walltime,
        "job_extra_directives": directives,
        # Lines of dask-jobqueue's that are left out.
        "job_directives_skip": ["--mem="] if memory else [],
    }


def _pattern(folder: Path) -> str:
    """Return a folder as sbatch's file name patterns take it between quotes: special characters are doubled or escaped."""
    return str(folder).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _queue_options(kind: str, jobs: QueueJobs) -> dict[str, Any]:
    """Return queue and walltime as a kind of queue takes them."""
    if kind == "htcondor":
        # It has neither, and wants to know of disk.
        return {"disk": "4GiB"}
    minutes, seconds = divmod(math.ceil(jobs.walltime_seconds), 60)
    # Only Slurm knows days.
    walltime = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    if kind == "lsf":
        minutes += seconds > 0
        walltime = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return {"walltime": walltime, **({} if jobs.queue is None else {"queue": jobs.queue})}


def _exports(jobs: Jobs, is_slurm: bool, name: str, logs: Path | None) -> list[str]:
    """Set the environment of the workers: how they compute, when they stop taking blocks, where their log is."""
    threads = [f"{library}_NUM_THREADS={jobs.threads}" for library in ("OMP", "MKL", "OPENBLAS")]
    # From the job's start: a worker that takes the place of a killed one has what is left.
    life = [f"{LEAVE_AT}=$(( $(date +%s) + {jobs.lifetime_seconds:.0f} ))", f"{STAGGER}={jobs.stagger_seconds:g}"]
    # Python would import from the folder in which the command was called, which others may have filled.
    lines = [f"export {' '.join(threads)} PYTHONSAFEPATH=1", f"export {' '.join(life)}"]
    if is_slurm and logs is not None:
        lines.append(f"export {LOG}={shlex.quote(str(logs))}/{name}-$SLURM_JOB_ID.log")
    return lines


def _python(profile: JobProfile, jobs: Jobs) -> str:
    """Return the start of the command that runs Python on a node, in a container if there is one."""
    if profile.container is None:
        return shlex.quote(profile.python or sys.executable)
    binds = [word for folder in profile.container_binds for word in ("--bind", folder)]
    command = [profile.container_command, "exec", *(["--nv"] if jobs.gpus else []), *binds, str(profile.container)]
    return f"{shlex.join(command)} {profile.python or 'python3'}"


def scheduler_options(
    profile: JobProfile, stage: Stage = "cpu", link: Path | None = None, step: int = 0
) -> dict[str, Any]:
    """Return the options of a worker pool's scheduler, which runs in this process and listens on one address.

    Args:
        profile: The profile.
        stage: Which of its pools.
        link: File for the link of the dashboard; None = there is no dashboard.
        step: The step of its jobs' memory.
    """
    scheduler, host = profile.scheduler, scheduler_host(profile)
    # The schedulers of both pools run side by side, and beside them those of larger jobs.
    place = 2 * step + (stage == "gpu")
    port, page = (number + place if number else 0 for number in (scheduler.port, scheduler.dashboard_port))
    return {"host": host, "port": port, "dashboard_address": f"{host}:0", **dashboard_options(link, page)}


def scheduler_host(profile: JobProfile) -> str:
    """Return the address of this host as the jobs' nodes see it."""
    from distributed.utils import get_ip, get_ip_interface

    scheduler = profile.scheduler
    if scheduler.host:
        return scheduler.host
    interface = scheduler.interface or profile.interface
    return str(get_ip_interface(interface) if interface else get_ip())
