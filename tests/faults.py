"""Segmenters for tests: what they do follows from the pixels and a log file, never from chance."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from scipy import ndimage


def bright_pieces(image, log=None, fail_on=None, times=10**9, seconds=0.0):
    """Connected pieces of pixels above zero; an image with the value `fail_on` fails its first `times` times.

    Args:
        image: (y, x) integers.
        log: File that gets one line per call: the image's largest value, and `failed` or `done`.
        fail_on: Pixel value of the image that fails.
        times: How often it fails.
        seconds: How long it takes.
    """
    here = int(image.max())
    time.sleep(seconds)
    if log is not None:
        path = Path(log)
        before = path.read_text().splitlines().count(f"{here} failed") if path.exists() else 0
        failing = here == fail_on and before < times
        with os.fdopen(os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
            stream.write(f"{here} {'failed' if failing else 'done'}\n")
        if failing:
            raise RuntimeError(f"made to fail on {here}")
    return ndimage.label(image > 0)[0].astype(np.int32)


def wrong_shape(image):
    """Labels of another shape than the image."""
    return np.zeros((3, 3), np.int32)
