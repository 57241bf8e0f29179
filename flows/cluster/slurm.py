"""Lists and cancels Slurm jobs, by Slurm's own commands."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from slidesam.tasks.errors import ClusterError, in_one_line

_TIMEOUT = 60.0


class Job(NamedTuple):
    """A job in the queue.

    Attributes:
        id: Its number.
        name: Its name.
        state: PENDING, RUNNING, COMPLETING, ...
        reason: Why it waits, or the nodes it runs on.
    """

    id: str
    name: str
    state: str
    reason: str


def has_slurm() -> bool:
    """Tell whether Slurm's commands are on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def list_jobs_named(names: Sequence[str]) -> list[Job]:
    """List this user's jobs with these names that wait or run.

    Raises:
        ClusterError: Slurm doesn't answer.
    """
    text = _run("squeue", "--me", "--noheader", f"--name={','.join(names)}", "--format=%A|%j|%T|%r|%N")
    rows = [line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    return [Job(id, name, state, nodes or reason) for id, name, state, reason, nodes in rows]


def list_out_of_memory(names: Sequence[str]) -> set[str]:
    """List the numbers of this user's jobs with these names that Slurm ended for their memory, minutes ago at most.

    Raises:
        ClusterError: Slurm doesn't answer.
    """
    text = _run("squeue", "--me", "--noheader", f"--name={','.join(names)}", "--states=OUT_OF_MEMORY", "--format=%A|%T")
    rows = [line.strip().partition("|") for line in text.splitlines()]
    return {number for number, _, state in rows if state == "OUT_OF_MEMORY"}


def cancel_jobs(names: Sequence[str], wait: float = 60.0) -> list[Job]:
    """Cancel this user's jobs with these names, and wait until they are gone.

    Args:
        names: The jobs' names.
        wait: Seconds to wait at most.

    Returns:
        The jobs that there were.

    Raises:
        ClusterError: Slurm doesn't answer, or the jobs are still there after that time.
    """
    cancelled: dict[str, Job] = {}
    deadline = time.monotonic() + wait
    while remaining := list_jobs_named(names):
        # By number, since scancel takes one name only; in each round, since a job may have been submitted just now.
        new = [job.id for job in remaining if job.id not in cancelled]
        cancelled.update({job.id: job for job in remaining})
        if new:
            _run("scancel", *new)
        if time.monotonic() > deadline:
            ids = ", ".join(job.id for job in remaining)
            raise ClusterError(f"jobs {ids} were cancelled and are still there after {wait:.0f} s", "see `squeue --me`")
        time.sleep(0.5)
    return list(cancelled.values())


def _run(*command: str) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)  # noqa: S603
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} isn't here", "run this where Slurm's commands are") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{command[0]} doesn't answer within {_TIMEOUT:.0f} s", "is slurmctld up?") from error
    except subprocess.CalledProcessError as error:
        raise ClusterError(f"{command[0]} failed: {in_one_line(error.stderr or error.stdout)}") from error
    return process.stdout
