"""Segmenters for tests: what they do follows from the pixels and a log file, never from chance."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from slidesam.tasks.segment.memory import used_memory
from slidesam.tasks.segment.worker_state import this_worker


def bright_pieces(image, log=None, fail_on=None, times=10**9, seconds=0.0, deed="fail"):
    """Connected pieces of pixels above zero; an image with the value `fail_on` fails its first `times` times.

    Args:
        image: (y, x) integers.
        log: File that gets a line as a call begins to fail or is done: the image's largest value, and which.
        fail_on: Pixel value of the image that fails.
        times: How often it fails.
        seconds: How long it takes.
        deed: How it fails: fail (an error), kill (as the kernel does where memory runs out), hang, memory (an allocation
            that can't be).
    """
    here = int(image.max())
    time.sleep(seconds)
    if fail_on == here and _count(log, f"{here} failed") < times:
        _note(log, f"{here} failed")
        _fail(deed, here)
    _note(log, f"{here} done")
    return ndimage.label(image > 0)[0].astype(np.int32)


def bright_pieces_clear_of_the_edge(image: np.ndarray) -> np.ndarray:
    """Label bright pieces, and leave the outermost pixels empty, as some segmenters do."""
    return np.pad(bright_pieces(image)[1:-1, 1:-1], 1)


def _count(log, line):
    if log is None:
        return 0
    return Path(log).read_text().splitlines().count(line) if Path(log).exists() else 0


def _note(log, line):
    if log is not None:
        with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
            stream.write(f"{line}\n")


def _fail(deed, here):
    if deed == "kill":
        # As a block that runs out of memory: by then Prefect has been told that it began.
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "hang":
        time.sleep(600)
    if deed == "memory":
        np.empty(2**60, np.uint8)
    raise RuntimeError(f"made to fail on {here}")


def hungry_pieces(image, log=None, hungry=None, mib=0, deed="hold", group=None):
    """As `bright_pieces`; an image with the value `hungry` needs so many MiB for a second.

    Args:
        image: (y, x) integers.
        log: File that gets a line as a call begins, and as it is done.
        hungry: Pixel value of the image that needs much.
        mib: How much.
        deed: hold; kill = if it is near the worker's limit, the process ends as the kernel ends it.
        group: Memory control group that the first such call joins: the kernel itself ends the process.
    """
    here = int(image.max())
    _note(log, f"{here} begun")
    if here == hungry:
        if group is not None and _count(log, f"{here} begun") == 1:
            Path(group, "cgroup.procs").write_text(str(os.getpid()))
            time.sleep(0.3)
        memory = np.ones(mib << 20, np.uint8)
        time.sleep(1)
        if deed == "kill" and used_memory() > 0.8 * this_worker.memory_limit:
            os.kill(os.getpid(), signal.SIGKILL)
        del memory
    return bright_pieces(image, log)


def devices_seen(image, log=None, seconds=0.0):
    """As `bright_pieces`; its log gets the Slurm job, the process and what it sees of devices."""
    _note(
        log,
        " ".join(
            [os.environ.get("SLURM_JOB_ID", "none"), str(os.getpid()), os.environ.get("CUDA_VISIBLE_DEVICES", "-")]
        ),
    )
    return bright_pieces(image, seconds=seconds)


def wrong_shape(image):
    """Labels of another shape than the image."""
    return np.zeros((3, 3), np.int32)


class TwoPhase:
    """As `bright_pieces`, of which a device does the beginning; a failure is of the rest, unless `fails_first`.

    With `blocks` the rest of each but the last waits for the next one's beginning, `patience` seconds at most.
    """

    device = "cuda"

    def __init__(self, log=None, fail_on=None, times=10**9, deed="fail", fails_first=False, blocks=0, patience=30):
        self.log, self.fails_first, self.blocks, self.patience = log, fails_first, blocks, patience
        self.begun = threading.Semaphore(0)
        self.failing = {"log": log, "fail_on": fail_on, "times": times, "deed": deed}

    def prepare(self, sample, slide):
        return {}

    def segment(self, image, params):
        return self.begin(image, params)()

    def begin(self, image, params):
        here = int(image.max())
        _note(self.log, f"{here} begun")
        if here > 1:
            self.begun.release()
        if self.fails_first:
            bright_pieces(image, **self.failing | {"log": None})
        return lambda: self.rest(image, here)

    def rest(self, image, here):
        if here < self.blocks:
            self.begun.acquire(timeout=self.patience)
        return bright_pieces(image, **self.failing)
