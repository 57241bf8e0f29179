"""Semaphores of a run that was killed as a whole: the next one removes them, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.flows.cluster.semaphores import remove_dead_semaphores

# As a nanny does; says its resource tracker's process.
NANNY = """
import multiprocessing
from multiprocessing import resource_tracker
from slidesam.flows.cluster.semaphores import name_semaphores
name_semaphores()
queue = multiprocessing.get_context("spawn").Queue()
print(resource_tracker._resource_tracker._pid, flush=True)
input()
"""


def semaphores_of(process: subprocess.Popen[str]) -> list[Path]:
    return list(Path("/dev/shm").glob(f"sem.slidesam-{process.pid}-*"))


@pytest.fixture
def start_nanny():
    started = []

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen([sys.executable, "-c", NANNY], text=True, stdin=-1, stdout=-1)
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_semaphores_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(start_nanny) -> None:
    (killed, tracker), (living, _) = start_nanny(), start_nanny()
    os.kill(tracker, signal.SIGKILL)
    killed.kill()
    killed.wait()
    assert len(semaphores_of(killed)) == len(semaphores_of(living)) == 3
    remove_dead_semaphores()
    assert (len(semaphores_of(killed)), len(semaphores_of(living))) == (0, 3)
    # A process that ends by itself leaves none.
    living.communicate("\n")
    assert not semaphores_of(living)


def test_what_may_be_of_another_machine_or_program_stays() -> None:
    others = [
        Path(f"/dev/shm/sem.{name}{os.getpid()}") for name in ("slidesam-4194304-1-0123456789abcdef-", "mp-chaos")
    ]
    try:
        for path in others:
            path.touch()
        remove_dead_semaphores()
        assert all(path.exists() for path in others)
    finally:
        for path in others:
            path.unlink()
