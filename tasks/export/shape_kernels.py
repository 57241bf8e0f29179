"""Loops that measure the shapes of objects, compiled by numba: moments, perimeter and convex hull, each object by itself.

`group_runs` sorts pixels by object, as runs along rows. All else walks one object's runs in row-major order and counts from the
object's own bounding box, so that an object has the same bits in whichever window it is measured. Sums of coordinates are
integers, which are exact in any order.

Nothing here reassociates sums of floats (no `fastmath`), so that all machines round alike.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.labels.kernels import compile_loop

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_NOWHERE = np.int64(1) << np.int64(40)


class Runs(NamedTuple):
    """The pixels of all objects, as runs along rows, by object and within an object in row-major order.

    Attributes:
        bounds: (count + 1,) int64: the runs of object i, counted from 0, are bounds[i]:bounds[i + 1].
        places: (runs, 3) int64 row, first column, and column past the end.
    """

    bounds: Ints
    places: Ints


@compile_loop
def _count_runs(labels: NDArray[np.uint32], count: int) -> Ints:
    """Count the runs of each object, (count + 1,), at 0 those of ids that aren't there."""
    counts = np.zeros(count + 1, np.int64)
    height, width = labels.shape
    for y in range(height):
        before = np.uint32(0)
        for x in range(width):
            label = labels[y, x]
            if label != before:
                if label > count:
                    counts[0] += 1
                elif label != 0:
                    counts[label] += 1
                before = label
    return counts


@compile_loop
def _place_runs(labels: NDArray[np.uint32], bounds: Ints) -> Ints:
    places = np.empty((bounds[-1], 3), np.int64)
    following = bounds.copy()
    height, width = labels.shape
    for y in range(height):
        row = labels[y]
        before = np.uint32(0)
        for x in range(width):
            label = row[x]
            if label != before:
                if before != 0:
                    places[following[before - 1] - 1, 2] = x
                if label != 0:
                    run = following[label - 1]
                    places[run, 0], places[run, 1] = y, x
                    following[label - 1] = run + 1
                before = label
        if before != 0:
            places[following[before - 1] - 1, 2] = width
    return places


def group_runs(labels: NDArray[np.uint32], count: int) -> Runs:
    """Sort pixels by object.

    Args:
        labels: (y, x), ids 1..count, 0 = nothing.
        count: The largest id that may occur.

    Raises:
        ValueError: A larger id occurs.

    Example:
        >>> runs = group_runs(np.array([[2, 2, 0], [1, 2, 2]], np.uint32), 2)
        >>> runs.bounds.tolist(), runs.places.tolist()
        ([0, 1, 3], [[1, 0, 1], [0, 0, 2], [1, 1, 3]])
    """
    counts = _count_runs(labels, count)
    if counts[0]:
        raise ValueError(f"labels of 1 to {count} are expected, and {labels.max()} is among them")
    counts[0] = 0
    bounds = np.cumsum(counts)
    return Runs(bounds, _place_runs(labels, bounds))


@compile_loop
def _sum_squares(stop: Any) -> Any:
    """Sum the squares of 0..stop - 1."""
    return (stop - 1) * stop * (2 * stop - 1) // 6


@compile_loop
def _measure_moments(bounds: Ints, places: Ints) -> tuple[Ints, Ints, Floats]:
    count = bounds.size - 1
    boxes = np.zeros((count, 4), np.int64)
    sums = np.zeros((count, 3), np.int64)
    moments = np.zeros((count, 3), np.float64)
    for label in range(count):
        first, last = bounds[label], bounds[label + 1]
        if first == last:
            continue
        top, bottom = places[first, 0], places[last - 1, 0] + 1
        left, right = _NOWHERE, np.int64(0)
        for run in range(first, last):
            left, right = min(left, places[run, 1]), max(right, places[run, 2])
        boxes[label, 0], boxes[label, 1], boxes[label, 2], boxes[label, 3] = top, left, bottom, right
        n = y_sum = x_sum = yy_sum = xx_sum = yx_sum = np.int64(0)
        for run in range(first, last):
            y, start, stop = places[run, 0] - top, places[run, 1] - left, places[run, 2] - left
            length = stop - start
            columns = (start + stop - 1) * length // 2
            n += length
            y_sum += y * length
            x_sum += columns
            yy_sum += y * y * length
            yx_sum += y * columns
            xx_sum += _sum_squares(stop) - _sum_squares(start)
        sums[label, 0], sums[label, 1], sums[label, 2] = n, y_sum, x_sum
        # From the pixel at the centroid on the sums are small: their products are exact in floats, of all but huge objects.
        y, x = y_sum // n, x_sum // n
        yy_sum += n * y * y - 2 * y * y_sum
        xx_sum += n * x * x - 2 * x * x_sum
        yx_sum += n * y * x - y * x_sum - x * y_sum
        y_rest, x_rest, area = float(y_sum - n * y), float(x_sum - n * x), float(n)
        moments[label, 0] = area * yy_sum - y_rest * y_rest
        moments[label, 1] = area * xx_sum - x_rest * x_rest
        moments[label, 2] = area * yx_sum - y_rest * x_rest
    return boxes, sums, moments


def measure_moments(runs: Runs) -> tuple[Ints, Ints, Floats]:
    """Measure where objects lie and how their pixels spread.

    Returns:
        (count, 4) bounding boxes y0, x0, y1, x1, half open; (count, 3) area, sum of rows and sum of columns, both counted from
        the box; (count, 3) variance of rows, variance of columns and covariance, each times the squared area.

    Example:
        >>> boxes, sums, moments = measure_moments(group_runs(np.array([[0, 0, 0], [0, 1, 1]], np.uint32), 1))
        >>> boxes.tolist(), sums.tolist(), moments.tolist()
        ([[1, 1, 2, 3]], [[2, 0, 1]], [[0.0, 1.0, 0.0]])
    """
    return _measure_moments(runs.bounds, runs.places)


@compile_loop
def _fill_ellipses(sums: Ints, moments: Floats, ellipses: Floats) -> None:
    for label in range(ellipses.shape[0]):
        area = float(sums[label, 0])
        if area == 0:
            continue
        rows, columns, both = moments[label]
        half, root = (rows + columns) / 2, math.sqrt(((rows - columns) / 2) ** 2 + both * both)
        largest = half + root
        # As products and sums of positive numbers: differences of the eigenvalues would lose digits of lines and of discs.
        smallest = max(0.0, rows * columns - both * both) / largest if largest > 0 else 0.0
        ellipses[label, 0] = 4 * math.sqrt(largest) / area
        ellipses[label, 1] = 4 * math.sqrt(smallest) / area
        ellipses[label, 2] = math.sqrt(min(1.0, 2 * root / largest)) if largest > 0 else 0.0
        if rows == columns:
            ellipses[label, 3] = math.pi / 4 if both > 0 else -math.pi / 4
        else:
            ellipses[label, 3] = 0.5 * math.atan2(2 * both, rows - columns)


def measure_ellipses(sums: Ints, moments: Floats) -> Floats:
    """Measure the ellipses with the objects' second moments, from the results of `measure_moments`.

    Returns:
        (count, 4) major axis, minor axis, eccentricity, and the angle between the rows' axis and the major axis in radians,
        from -pi/2 to pi/2; as scikit-image defines them. NaN for ids that are absent.
    """
    ellipses = np.full((sums.shape[0], 4), np.nan)
    _fill_ellipses(sums, moments, ellipses)
    return ellipses


@compile_loop
def _fill_border(labels: NDArray[np.uint32], y: int, border: NDArray[np.uint32]) -> None:
    """Keep a row's labels where one of the four neighbours has another; what lies outside the window has another too."""
    height, width = labels.shape
    row = labels[y]
    if y == 0 or y + 1 == height:
        border[1 : width + 1] = row
        return
    above, below = labels[y - 1], labels[y + 1]
    border[1], border[width] = row[0], row[width - 1]
    for x in range(1, width - 1):
        label = row[x]
        inside = (above[x] == label) & (below[x] == label) & (row[x - 1] == label) & (row[x + 1] == label)
        border[x + 1] = np.uint32(0) if inside else label


@compile_loop
def _count_steps(labels: NDArray[np.uint32], count: int) -> Ints:
    """Count each object's border pixels of length 1, of length sqrt 2, and of the mean of both."""
    steps = np.zeros((count, 3), np.int64)
    height, width = labels.shape
    borders = np.zeros((3, width + 2), np.uint32)
    _fill_border(labels, 0, borders[1])
    for y in range(height):
        above, row, below = borders[y % 3], borders[(y + 1) % 3], borders[(y + 2) % 3]
        if y + 1 < height:
            _fill_border(labels, y + 1, below)
        else:
            below[:] = 0
        for x in range(1, width + 1):
            label = row[x]
            if label == 0:
                continue
            sides = (above[x] == label) + (below[x] == label) + (row[x - 1] == label) + (row[x + 1] == label)
            corners = (
                (above[x - 1] == label) + (above[x + 1] == label) + (below[x - 1] == label) + (below[x + 1] == label)
            )
            if (sides == 2 or sides == 3) and corners <= 2:
                steps[label - 1, 0] += 1
            elif corners == sides + 2 and sides <= 1:
                steps[label - 1, 1] += 1
            elif sides == 1 and (corners == 1 or corners == 2):
                steps[label - 1, 2] += 1
    return steps


def measure_perimeters(labels: NDArray[np.uint32], count: int) -> Floats:
    """Measure perimeters by the weights of scikit-image's `perimeter` with four neighbours.

    A border pixel has a side in common with another label, with background or with the window's edge. It counts by how many of
    its eight neighbours are border pixels of the same object.

    Args:
        labels: (y, x), ids 1..count, 0 = nothing.
        count: The largest id.

    Returns:
        (count,) pixels; 0 for ids that are absent.

    References:
        Benkrid & Crookes, Design and FPGA implementation of a perimeter estimator, Queen's University of Belfast.
    """
    steps = _count_steps(labels, count)
    lengths: Floats = steps[:, 0] + math.sqrt(2) * steps[:, 1] + (1 + math.sqrt(2)) / 2 * steps[:, 2]
    return lengths


@compile_loop
def _find_columns(points: Ints, chain: Ints, columns: Ints) -> None:
    """Find the first column inside of the hull, in each row.

    Args:
        points: (2 n + 1,) the hull's leftmost points at the half rows -1/2, 0, 1/2, ..., n - 1/2, in half pixels.
        chain: (2 n + 1,) scratch.
        columns: (n,) is filled.
    """
    corners = 0
    for here in range(points.size):
        if points[here] == _NOWHERE:
            continue
        while corners > 1:
            last, earlier = chain[corners - 1], chain[corners - 2]
            turn = (points[last] - points[earlier]) * (here - last) - (points[here] - points[last]) * (last - earlier)
            if turn < 0:
                break
            corners -= 1
        chain[corners] = here
        corners += 1
    corner = 0
    for row in range(columns.size):
        here = 2 * row + 1
        while chain[corner + 1] < here:
            corner += 1
        start, stop = chain[corner], chain[corner + 1]
        height = stop - start
        scaled = points[start] * height + (points[stop] - points[start]) * (here - start)
        columns[row] = -((-scaled) // (2 * height))


@compile_loop
def _measure_hulls(bounds: Ints, places: Ints, boxes: Ints) -> Ints:
    count = bounds.size - 1
    areas = np.zeros(count, np.int64)
    tallest = np.int64(0)
    for label in range(count):
        tallest = max(tallest, boxes[label, 2] - boxes[label, 0])
    # Right ends are measured to the left, so that both sides of the hull are left sides.
    left, right, chain = np.empty((3, 2 * tallest + 1), np.int64)
    first, last = np.empty((2, tallest), np.int64)
    for label in range(count):
        if bounds[label] == bounds[label + 1]:
            continue
        top, edge = boxes[label, 0], boxes[label, 1]
        height = boxes[label, 2] - top
        size = 2 * height + 1
        left[:size] = _NOWHERE
        right[:size] = _NOWHERE
        for run in range(bounds[label], bounds[label + 1]):
            middle = 2 * (places[run, 0] - top) + 1
            start, stop = 2 * (places[run, 1] - edge), 2 * (places[run, 2] - 1 - edge)
            left[middle] = min(left[middle], start - 1)
            right[middle] = min(right[middle], -stop - 1)
            for near in (middle - 1, middle + 1):
                left[near] = min(left[near], start)
                right[near] = min(right[near], -stop)
        _find_columns(left[:size], chain, first[:height])
        _find_columns(right[:size], chain, last[:height])
        pixels = np.int64(0)
        for row in range(height):
            pixels += 1 - last[row] - first[row]
        areas[label] = pixels
    return areas


def measure_hulls(runs: Runs, boxes: Ints) -> Ints:
    """Count the pixels whose centres lie in the convex hull of an object's pixels, or on its border.

    As in scikit-image's `convex_hull_image` a pixel stands for the four middles of its sides. They have half integers as
    coordinates, so all is computed in integers: the count is exact.

    Args:
        runs: The objects' pixels.
        boxes: (count, 4) their bounding boxes.

    Returns:
        (count,) pixels; 0 for ids that are absent.

    Example:
        >>> runs = group_runs(np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]], np.uint32), 1)
        >>> measure_hulls(runs, measure_moments(runs)[0]).tolist()
        [6]
    """
    return _measure_hulls(runs.bounds, runs.places, boxes)
