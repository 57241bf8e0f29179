"""Trace the outlines of labels: polygons along the sides of pixels that GEOS and JTS take as valid.

The rule, per object:

- A part is a 4-connected component of the object's pixels, and becomes one polygon.
- Where two pixels of one part meet at a corner only, its rings cross over from one pixel to the other; where the two belong to
  different parts, or to different objects, each ring stays with its own pixel.

So holes are the 4-connected components of what a part leaves out. No ring passes a point twice: a part connects the two pixels at
such a corner, and thereby separates the two others, which are therefore bordered by two different rings. Two rings may touch in
a point, as the simple features of the OGC allow. The interior stays connected, because the part is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.labels.kernels import Ints, Labels, compile_loop

Pixels = NDArray[np.int32]
_MOST_PIXELS = 2**31


class Outlines(NamedTuple):
    """Polygons of all objects of a window, as rings.

    Attributes:
        points: (p, 2) int32 x, y of corners of pixels, in pixels of the window; a ring's first point isn't repeated at its end.
            Exteriors run clockwise as one sees them (y points down), holes the other way.
        ring_starts: (r + 1,) int64, where each ring begins in `points`.
        ring_objects: (r,) int32 local id of each ring's object, ascending.
        ring_parts: (r,) int32, which polygon of its object the ring belongs to, ascending from 0; its exterior comes first.
    """

    points: NDArray[np.int32]
    ring_starts: NDArray[np.int64]
    ring_objects: NDArray[np.int32]
    ring_parts: NDArray[np.int32]


@compile_loop
def _find_root(parts: Pixels, place: int) -> int:
    """Where the first pixel of a part is, as far as it is known; shortens the way there."""
    while parts[place] != place:
        parts[place] = parts[parts[place]]
        place = parts[place]
    return place


@compile_loop
def _join_above(parts: Pixels, labels: Labels, y: int, start: int, stop: int, place: int) -> None:
    """Join a run of pixels, whose first one is at `place`, with the runs of its label in the row above."""
    above = place - labels.shape[1] - 1
    for x in range(start, stop):
        if labels[y - 1, x] == labels[y, x] and (x == start or labels[y - 1, x - 1] != labels[y, x]):
            one, other = _find_root(parts, place), _find_root(parts, above + x - start)
            parts[max(one, other)] = min(one, other)


@compile_loop
def _find_parts(labels: Labels) -> tuple[Pixels, int]:
    """Find the 4-connected components of equal labels, by union-find on runs, in the array that is returned.

    Returns:
        ((height + 2) * (width + 1) + 1,) for each pixel of the window, to which a row above, a row below and a column on the left
        are added, where the first pixel of its part is, -1 = background; and how many runs there are.
    """
    height, width = labels.shape
    parts = np.full((height + 2) * (width + 1) + 1, -1, np.int32)
    runs = 0
    for y in range(height):
        row, left = labels[y], (y + 1) * (width + 1) + 1
        start = 0
        while start < width:
            stop = start + 1
            while stop < width and row[stop] == row[start]:
                stop += 1
            if row[start] != 0:
                runs += 1
                parts[left + start : left + stop] = left + start
                if y > 0:
                    _join_above(parts, labels, y, start, stop, left + start)
            start = stop
    # What a pixel points to lies before it, and so points to the first pixel of the part already.
    for place in range(parts.size):
        if parts[place] >= 0:
            parts[place] = parts[parts[place]]
    return parts, runs


@compile_loop
def _trace_ring(
    parts: Pixels, stride: int, at: int, direction: int, is_traced: NDArray[np.bool_], points: Pixels, used: int
) -> int:
    """Follow a border with the part on the right-hand side, from a corner of it until it is reached again.

    Corners of pixels are numbered as the pixels to their lower right. Directions: 0 right, 1 down, 2 left, 3 up.

    Args:
        parts: Parts of pixels.
        stride: How far the next row is in `parts`.
        at: Corner to begin at.
        direction: The border's direction there.
        is_traced: By pixel: a ring has passed its right side; written here.
        points: (p, 2) x, y, written here.
        used: How many points there are already.

    Returns:
        How many points there are afterwards.
    """
    step = (1, stride, -1, -stride)
    right_ahead = (0, -1, -stride - 1, -stride)
    left_ahead = (-stride, 0, -1, -stride - 1)
    part, start = parts[at + right_ahead[direction]], at
    while True:
        points[used, 0] = (at - 1) % stride
        points[used, 1] = (at - 1) // stride - 1
        used += 1
        while True:
            if direction == 1:
                is_traced[at - 1] = True
            at += step[direction]
            if at == start:
                return used
            # The left one first: where only the two diagonal pixels are the part's, the ring crosses over.
            if parts[at + left_ahead[direction]] == part:
                direction = (direction + 3) % 4
                break
            if parts[at + right_ahead[direction]] != part:
                direction = (direction + 1) % 4
                break


@compile_loop
def _trace_rings(parts: Pixels, stride: int, runs: int) -> tuple[Pixels, Ints, Pixels]:
    """Trace all rings, in the order of their first right or left side, row by row.

    Returns:
        (p, 2) points; (r + 1,) where each ring begins; (r,) the first pixel of its part.
    """
    # A run has two vertical sides, each of them two corners at most; a ring has a right side of a run. What stays unused of
    # these arrays takes no memory, because it is never touched.
    points = np.empty((4 * runs, 2), np.int32)
    starts, roots = np.empty(runs + 1, np.int64), np.empty(runs, np.int32)
    is_traced = np.zeros(parts.size, np.bool_)
    starts[0] = rings = 0
    used = int(starts[0])
    for place in range(stride, parts.size - stride - 1):
        part = parts[place]
        if part < 0:
            continue
        if part == place:
            used = _trace_ring(parts, stride, place, 0, is_traced, points, used)
            roots[rings], starts[rings + 1] = part, used
            rings += 1
        if parts[place + 1] != part and not is_traced[place]:
            used = _trace_ring(parts, stride, place + 1, 1, is_traced, points, used)
            roots[rings], starts[rings + 1] = part, used
            rings += 1
    return points[:used], starts[: rings + 1], roots[:rings]


@compile_loop
def _gather_points(points: Pixels, starts: Ints, order: Ints) -> tuple[Pixels, Ints]:
    """Copy rings in another order."""
    gathered, gathered_starts = np.empty_like(points), np.zeros_like(starts)
    used = 0
    for ring in range(order.size):
        for place in range(starts[order[ring]], starts[order[ring] + 1]):
            gathered[used, 0], gathered[used, 1] = points[place, 0], points[place, 1]
            used += 1
        gathered_starts[ring + 1] = used
    return gathered, gathered_starts


def trace_outlines(labels: Labels, count: int) -> Outlines:
    """Trace the outlines of all objects of a window, pixel-exact and without points on straight lines.

    Beside the labels it takes 5 bytes a pixel, and twice the outlines (8 bytes a point; touching cells of 37 px have a point for
    some 14 pixels). The worst case, in which every pixel is an object, takes 100 bytes a pixel.

    Args:
        labels: (y, x) uint32, local ids 1..count, 0 = background. Ids may be absent.
        count: The largest id that there may be.

    Raises:
        ValueError: An id is larger, or the window has 2³¹ pixels or more.

    Example:
        >>> outlines = trace_outlines(np.array([[2, 2, 0], [0, 2, 1]], np.uint32), 2)
        >>> outlines.points.tolist()
        [[2, 1], [3, 1], [3, 2], [2, 2], [0, 0], [2, 0], [2, 2], [1, 2], [1, 1], [0, 1]]
        >>> outlines.ring_starts.tolist(), outlines.ring_objects.tolist(), outlines.ring_parts.tolist()
        ([0, 4, 10], [1, 2], [0, 0])
    """
    height, width = labels.shape
    if (height + 2) * (width + 1) >= _MOST_PIXELS:
        raise ValueError(f"a window of {height} × {width} pixels is too large to be traced at once")
    if int(labels.max(initial=0)) > count:
        raise ValueError(f"a label of {int(labels.max())}, of {count} at most")
    parts, runs = _find_parts(np.ascontiguousarray(labels))
    points, starts, roots = _trace_rings(parts, width + 1, runs)
    del parts
    objects = labels[roots // (width + 1) - 1, roots % (width + 1) - 1].astype(np.int32)
    # Stable: a part's exterior is traced before its holes.
    order = np.lexsort((roots, objects))
    points, starts = _gather_points(points, starts, order)
    objects, roots = objects[order], roots[order]
    is_next_part = np.append(False, roots[1:] != roots[:-1])
    first_rings = np.searchsorted(objects, objects)
    part_numbers = np.cumsum(is_next_part)
    return Outlines(points, starts, objects, (part_numbers - part_numbers[first_rings]).astype(np.int32))
