"""Measuring objects for the table beside scikit-image's `regionprops_table` with the same properties on the same labels.

    make object-table     # or: python -m benchmarks.object_table [--side 2048]

Touching cells on all of the image, three channels of noise: about 3000 cells, and 15 700 of the size of nuclei. Times are CPU
time, on one core, the least of three runs of each; the loops have been compiled before. Memory is what the peak of a new process
grows by while it measures, beyond labels and pixels.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.measure import regionprops_table

from benchmarks.stitching.scenes import confluent
from slidesam.tasks.export.intensity_kernels import measure_intensities
from slidesam.tasks.export.measures import measure_objects
from slidesam.tasks.export.shape_kernels import (
    group_runs,
    measure_ellipses,
    measure_hulls,
    measure_moments,
    measure_perimeters,
)
from slidesam.tasks.pixels.stains import unmix_stains
from tests.support.memory import measure_peak

REPEATS = 3
CHANNELS = ("red", "green", "blue")
SPACINGS = (2048 / 55, 2048 / 125)
SHAPE = (
    "centroid", "bbox", "area", "perimeter", "axis_major_length", "axis_minor_length", "eccentricity", "orientation",
    "solidity",
)  # fmt: skip
INTENSITIES = ("intensity_mean", "intensity_std", "intensity_min", "intensity_max", "intensity_median")


class Case(NamedTuple):
    """Labels, (y, x) uint32, and pixels, (y, x, 3) uint8."""

    labels: NDArray[np.uint32]
    pixels: NDArray[np.uint8]
    count: int

    def measure(self) -> dict[str, NDArray[Any]]:
        """Make the table."""
        return measure_objects(self.labels, self.pixels, self.count, CHANNELS)

    def measure_by_skimage(self) -> dict[str, NDArray[Any]]:
        """Make scikit-image's table."""
        return regionprops_table(self.labels, self.pixels, properties=[*SHAPE, *INTENSITIES])


def make_case(side: int, spacing: float) -> Case:
    """Make touching cells at this distance, and noise as pixels."""
    rng = np.random.default_rng(0)
    labels = confluent(side, rng, spacing)
    pixels = np.clip(rng.normal(150, 30, (side, side, 3)), 0, 255).astype(np.uint8)
    return Case(labels, pixels, int(labels.max()))


def list_parts(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """List what is timed."""
    labels, pixels, count = case
    runs = group_runs(labels, count)
    boxes, sums, moments = measure_moments(runs)
    yield "grouping", lambda: group_runs(labels, count)
    yield "shape: moments, axes", lambda: (measure_moments(runs), measure_ellipses(sums, moments))
    yield "shape: perimeter", lambda: measure_perimeters(labels, count)
    yield "hull", lambda: measure_hulls(runs, boxes)
    yield "intensities", lambda: measure_intensities(runs, pixels)
    yield "all: measure_objects", case.measure
    for name, dtype in (("16 bit", np.uint16), ("32-bit float", np.float32)):
        yield f"intensities of {name}", functools.partial(measure_intensities, runs, pixels.astype(dtype))
    yield "unmixing hematoxylin, eosin", lambda: unmix_stains(pixels)
    stains, names = unmix_stains(pixels), (*CHANNELS, "hematoxylin", "eosin")
    yield "all, with both stains", lambda: measure_objects(labels, [pixels, stains], count, names)


def time_call(call: Callable[[], object], repeats: int) -> float:
    """Return the least CPU seconds that a call takes."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure_memory(side: int, spacing: float, is_ours: bool) -> int:
    """Return the bytes that measuring takes in this process."""
    tiny = make_case(64, spacing)
    tiny.measure(), tiny.measure_by_skimage()  # imports and compiled loops
    case = make_case(side, spacing)
    return measure_peak(case.measure if is_ours else case.measure_by_skimage)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=2048)
    side = parser.parse_args().side
    # So that freed memory is given back, and the next array counts again.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    console = Console(width=100)
    for spacing in SPACINGS:
        case = make_case(side, spacing)
        area = np.count_nonzero(case.labels) / case.count
        title = f"{case.count} objects of {area:.0f} px on average, {side} x {side} px, 3 channels of 8 bit"
        table = Table("part", "us per object", title=title, title_justify="left", min_width=len(title))
        skimage = time_call(case.measure_by_skimage, REPEATS)
        for name, call in list_parts(case):
            call()
            seconds = time_call(call, REPEATS)
            if name.startswith("all:"):
                ratio = skimage / seconds
            table.add_row(name, f"{1e6 * seconds / case.count:.2f}", end_section=name.startswith("all"))
        table.add_row("scikit-image", f"{1e6 * skimage / case.count:.0f}", end_section=True)
        table.add_row("scikit-image / ours", f"{ratio:.0f}")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = pool.starmap(measure_memory, [(side, spacing, True), (side, spacing, False)], chunksize=1)
        table.add_row("memory, ours", f"{peaks[0] / 2**20:.0f} MiB")
        table.add_row("memory, scikit-image", f"{peaks[1] / 2**20:.0f} MiB")
        console.print(table)


if __name__ == "__main__":
    main()
