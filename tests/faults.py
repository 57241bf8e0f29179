"""Segmenters for tests: what they do follows from the pixels and a log file, never from chance."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from scipy import ndimage


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


def _count(log, line):
    return Path(log).read_text().splitlines().count(line) if Path(log).exists() else 0


def _note(log, line):
    if log is not None:
        with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
            stream.write(f"{line}\n")


def _fail(deed, here):
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "hang":
        time.sleep(600)
    if deed == "memory":
        np.empty(2**60, np.uint8)
    raise RuntimeError(f"made to fail on {here}")


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
