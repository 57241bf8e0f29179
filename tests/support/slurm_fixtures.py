"""A real Slurm (infra/dev-slurm) for the tests that need one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT

HOST = "10.177.0.1"
DEV_SLURM = ROOT / "infra" / "dev-slurm" / "slurm"
# What the profiles that come with slidesam need to know of this Slurm. Small jobs, so that eight fit.
HERE = {"scheduler.host": HOST, "give_back_after": 5}
SMALL = {"cores": 1, "memory": 2}
# Slurm's account of all jobs that this process submits: other processes of tests use the same Slurm at the same time.
ACCOUNT = f"slidesam-{os.environ.get('PYTEST_XDIST_WORKER', 'tests')}"
LOCK = Path(tempfile.gettempdir()) / f"slidesam-tests-slurm-{os.getuid()}.lock"


def profile(name: str, **changes: object):
    """A shipped profile for the dev Slurm; `cpu__maximum_jobs=4` sets cpu.maximum_jobs."""
    from slidesam.flows.cluster.find_profile import load_profile

    pools = ("cpu", "gpu") if name != "slurm-cpu" else ("cpu",)
    small = {f"{pool}.{key}": value for pool in pools for key, value in SMALL.items()}
    return load_profile(name, HERE | small | {key.replace("__", "."): value for key, value in changes.items()})


def options(**changes: object) -> list[str]:
    """The same for the command line."""
    small = {f"cpu.{key}": value for key, value in SMALL.items()}
    put = HERE | small | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in put.items() for word in ("--cluster-set", f"{key}={value}")]


def queue() -> list[list[str]]:
    """Read id, name, state and node of this process's jobs."""
    text = subprocess.run(
        ["squeue", "--noheader", "--format=%a|%A|%j|%T|%N"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return [job for account, *job in (line.split("|") for line in text.splitlines()) if account == ACCOUNT]


def cancel_all() -> None:
    """Cancel this process's jobs."""
    subprocess.run(["scancel", *(job[0] for job in queue())], check=False, capture_output=True)


@contextmanager
def _locked(operation: int) -> Iterator[None]:
    """Hold the lock on Slurm, with others (LOCK_SH) or alone (LOCK_EX)."""
    with LOCK.open("w") as file:
        fcntl.flock(file, operation)
        yield


def until(what: Callable[[], object], seconds: float = 180.0) -> object:
    """Waits until something is so, and says what it then is."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.1)
    return value


def is_up() -> bool:
    """Tell whether both nodes take jobs."""
    # A test of another process may have taken a node away.
    with _locked(fcntl.LOCK_SH):
        return subprocess.run([DEV_SLURM, "status"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def slurm_up() -> Iterator[None]:
    """Require Slurm with both nodes, and mark the jobs of this process as its own."""
    if not is_up():
        pytest.skip(
            "infra/dev-slurm isn't running: `infra/dev-slurm/slurm install && infra/dev-slurm/slurm start` as root"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SBATCH_ACCOUNT", ACCOUNT)
        # Of the segmenters of these tests: jobs import nothing from the folder in which the tests are called.
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture
def shared_slurm(slurm_up: None) -> Iterator[None]:
    """Use Slurm while tests of other processes may."""
    with _locked(fcntl.LOCK_SH):
        yield


@pytest.fixture
def empty_queue(shared_slurm: None) -> Iterator[None]:
    """Use Slurm with no job of this process in the queue, before and after."""
    yield from _check_queue()


@pytest.fixture
def slurm(prefect_server: str, empty_queue: None) -> None:
    """Use Slurm with an empty queue, and a Prefect server that its nodes can reach."""


@pytest.fixture
def whole_slurm(slurm_up: None, prefect_server: str) -> Iterator[None]:
    """Like `slurm`, but alone: for a test that needs all GPUs or all memory, or takes a node away."""
    with _locked(fcntl.LOCK_EX):
        yield from _check_queue()


def _check_queue() -> Iterator[None]:
    until(lambda: queue() == [], 90)
    yield
    left = queue()
    cancel_all()
    assert left == []
