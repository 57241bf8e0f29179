"""A real Slurm (infra/dev-slurm) for the tests that need one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import ROOT

HOST = "10.177.0.1"
DEV_SLURM = ROOT / "infra" / "dev-slurm" / "slurm"
# What the profiles that come with slidesam need to know of this Slurm. Small jobs, so that eight fit.
HERE = {"scheduler.host": HOST, "give_back_after": 5}
SMALL = {"cores": 1, "memory": 2}


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
    """Id, name, state and node of all jobs."""
    text = subprocess.run(
        ["squeue", "--noheader", "--format=%A|%j|%T|%N"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return [line.split("|") for line in text.splitlines()]


def until(what: Callable[[], object], seconds: float = 180.0) -> object:
    """Waits until something is so, and says what it then is."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.1)
    return value


def is_up() -> bool:
    """Whether both nodes take jobs."""
    return subprocess.run([DEV_SLURM, "status"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def slurm_up() -> None:
    """Slurm is there, with both nodes."""
    if not is_up():
        pytest.skip(
            "infra/dev-slurm isn't running: `infra/dev-slurm/slurm install && infra/dev-slurm/slurm start` as root"
        )


@pytest.fixture
def slurm(slurm_up: None, prefect_server: str) -> Iterator[None]:
    """Slurm with an empty queue, which it must be again afterwards."""
    until(lambda: queue() == [], 90)
    yield
    left = queue()
    subprocess.run(["scancel", "--me"], check=False)
    assert left == []
