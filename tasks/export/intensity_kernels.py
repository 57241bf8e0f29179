"""Loops that measure the intensities of objects, compiled by numba.

They take the pixels of an object in row-major order, so that sums have the same bits in whichever window it is measured. 8 bit
is counted in histograms, which makes all sums exact; of other types, all values of an object are copied to a buffer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.shape_kernels import Floats, Ints, Runs
from slidesam.tasks.labels.kernels import compile_loop

STATISTICS = ("mean", "std", "min", "max", "median")


@compile_loop
def _fill_from_histogram(histogram: NDArray[np.int64], row: Floats) -> None:
    """Fill in an object's five statistics, and clear its histogram."""
    n = total = squares = np.int64(0)
    low, high = -1, 0
    for value in range(256):
        amount = histogram[value]
        if amount:
            n += amount
            total += amount * value
            squares += amount * value * value
            low, high = value if low < 0 else low, value
    if n == 0:
        return
    # From the mean's whole part on the sums are small, and their products exact in floats.
    middle = total // n
    rest = float(total - n * middle)
    squares += n * middle * middle - 2 * middle * total
    row[0] = total / n
    row[1] = math.sqrt(float(n) * squares - rest * rest) / n
    row[2], row[3] = low, high
    seen, value = np.int64(0), low
    while seen + histogram[value] <= (n - 1) // 2:
        seen += histogram[value]
        value += 1
    upper = value
    while seen + histogram[upper] <= n // 2:
        seen += histogram[upper]
        upper += 1
    row[4] = (value + upper) / 2
    histogram[low : high + 1] = 0


@compile_loop
def _measure_bytes(bounds: Ints, places: Ints, pixels: NDArray[np.uint8], table: Floats) -> None:
    channels = pixels.shape[2]
    histograms = np.zeros((channels, 256), np.int64)
    for label in range(bounds.size - 1):
        for run in range(bounds[label], bounds[label + 1]):
            row = pixels[places[run, 0]]
            for x in range(places[run, 1], places[run, 2]):
                for channel in range(channels):
                    histograms[channel, row[x, channel]] += 1
        for channel in range(channels):
            _fill_from_histogram(histograms[channel], table[label, channel])


@compile_loop
def _fill_from_values(values: Floats, row: Floats) -> None:
    total, low, high = 0.0, math.inf, -math.inf
    for value in values:
        total += value
        low, high = min(low, value), max(high, value)
    mean = total / values.size
    squares = 0.0
    for value in values:
        squares += (value - mean) * (value - mean)
    row[0], row[1], row[2], row[3], row[4] = mean, math.sqrt(squares / values.size), low, high, np.median(values)


@compile_loop
def _measure_values(bounds: Ints, places: Ints, pixels: NDArray[Any], table: Floats) -> None:
    largest = np.int64(0)
    for label in range(bounds.size - 1):
        area = np.int64(0)
        for run in range(bounds[label], bounds[label + 1]):
            area += places[run, 2] - places[run, 1]
        largest = max(largest, area)
    values = np.empty(largest, np.float64)
    for label in range(bounds.size - 1):
        for channel in range(pixels.shape[2]):
            n = 0
            for run in range(bounds[label], bounds[label + 1]):
                row = pixels[places[run, 0]]
                for x in range(places[run, 1], places[run, 2]):
                    value = np.float64(row[x, channel])
                    if math.isfinite(value):
                        values[n] = value
                        n += 1
            if n:
                _fill_from_values(values[:n], table[label, channel])


def measure_intensities(runs: Runs, pixels: NDArray[Any]) -> Floats:
    """Measure the intensities of objects in each channel, in double precision.

    Args:
        runs: The objects' pixels.
        pixels: (y, x, c) of any real dtype. Values that aren't finite don't count.

    Returns:
        (count, c, 5) mean, standard deviation (of all pixels: `ddof` 0), minimum, maximum and median; NaN where no value counts.

    Example:
        >>> runs = Runs(np.array([0, 1]), np.array([[0, 0, 3]]))
        >>> measure_intensities(runs, np.array([[[3], [9], [6], [7]]], np.uint8))[0, 0].round(2).tolist()
        [6.0, 2.45, 3.0, 9.0, 6.0]
    """
    # Loops are compiled for each dtype that comes: there are none for half floats, nor for another machine's byte order.
    small = {"bool": np.uint8, "float16": np.float32}.get(pixels.dtype.name, pixels.dtype.newbyteorder("="))
    pixels = np.ascontiguousarray(pixels, small)
    table = np.full((runs.bounds.size - 1, pixels.shape[2], len(STATISTICS)), np.nan)
    measure = _measure_bytes if pixels.dtype == np.uint8 else _measure_values
    measure(runs.bounds, runs.places, pixels, table)
    return table
