"""Loops over labelled pixels, compiled by numba: which labels touch, which overlap, how large each is and where it lies.

All take labels as (y, x) uint32, 0 = background, and walk rows in runs of equal label, of which there are far fewer than
pixels. Nothing here knows blocks or slides.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba.core import config
from numpy.typing import NDArray

# Numba reads `.numba_config.yaml` in the current folder, which others may have filled, and the file may name a folder whose
# pickles are loaded as machine code. It forgets what it read there, and reads the environment only.
config._config_fname = os.devnull
config.reload_config()  # type: ignore[no-untyped-call]

Labels = NDArray[np.uint32]
Ints = NDArray[np.int64]
Pixel = tuple[int, int]
Box = tuple[int, int, int, int]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_START = 1024


class View(NamedTuple):
    """Labels from a row and column of an array on: like a slice, but with one memory layout, so that loops are compiled once.

    Attributes:
        labels: (y, x) uint32, C-contiguous.
        at: First row and column.
    """

    labels: Labels
    at: Pixel = (0, 0)


def compile_loop(function: _Function) -> _Function:
    """Compile a function; the machine code is cached on disk for the next process where that is possible."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[return-value]
    except RuntimeError:
        # A container can have no folder that numba may write to; then each process compiles, which takes seconds.
        return numba.njit(nogil=True)(function)  # type: ignore[return-value]


def _plain(box: Box) -> Box:
    """Return a box as a plain tuple: numba would compile once more for each kind of named tuple."""
    y0, x0, y1, x1 = box
    return y0, x0, y1, x1


@compile_loop
def _slot(keys: NDArray[np.uint64], key: np.uint64) -> np.unsignedinteger[Any]:
    """Where a key is in an open-addressed table of a power of two places, or where it would go."""
    mask = np.uint64(keys.size - 1)
    hashed = key * np.uint64(0x9E3779B97F4A7C15)
    place = (hashed ^ (hashed >> np.uint64(29))) & mask
    while keys[place] != _EMPTY and keys[place] != key:
        place = (place + np.uint64(1)) & mask
    return place


@compile_loop
def _grown(keys: NDArray[np.uint64], counts: Ints) -> tuple[NDArray[np.uint64], Ints]:
    """A table of twice the size with the same content."""
    wider, moved = np.full(2 * keys.size, _EMPTY, np.uint64), np.zeros((2 * keys.size, counts.shape[1]), np.int64)
    for place in range(keys.size):
        if keys[place] != _EMPTY:
            to = _slot(wider, keys[place])
            wider[to] = keys[place]
            moved[to] = counts[place]
    return wider, moved


@compile_loop
def _sorted_table(keys: NDArray[np.uint64], counts: Ints) -> tuple[NDArray[np.uint64], Ints]:
    """The keys of a table in ascending order, and their counts."""
    used = np.flatnonzero(keys != _EMPTY)
    order = used[np.argsort(keys[used])]
    return keys[order], counts[order]


@compile_loop
def _shared_length(start: int, stop: int, first: int, last: int) -> int:
    return max(0, min(stop, last) - max(start, first))


@compile_loop
def _count_overlaps(
    first: Labels,
    first_at: Pixel,
    second: Labels,
    second_at: Pixel,
    shape: Pixel,
    first_owns: Box,
    second_owns: Box,
) -> tuple[NDArray[np.uint64], Ints]:
    keys, counts = np.full(_START, _EMPTY, np.uint64), np.zeros((_START, 3), np.int64)
    used = 0
    height, width = shape
    for y in range(height):
        one = first[first_at[0] + y, first_at[1] : first_at[1] + width]
        two = second[second_at[0] + y, second_at[1] : second_at[1] + width]
        in_first = first_owns[0] <= y < first_owns[2]
        in_second = second_owns[0] <= y < second_owns[2]
        start = 0
        while start < width:
            a, b = one[start], two[start]
            stop = start + 1
            while stop < width and one[stop] == a and two[stop] == b:
                stop += 1
            if a != 0 or b != 0:
                key = (np.uint64(a) << np.uint64(32)) | np.uint64(b)
                place = _slot(keys, key)
                if keys[place] == _EMPTY:
                    keys[place] = key
                    used += 1
                counts[place, 0] += stop - start
                if in_first:
                    counts[place, 1] += _shared_length(start, stop, first_owns[1], first_owns[3])
                if in_second:
                    counts[place, 2] += _shared_length(start, stop, second_owns[1], second_owns[3])
                if 2 * used > keys.size:
                    keys, counts = _grown(keys, counts)
            start = stop
    return _sorted_table(keys, counts)


def count_overlaps(
    first: View, second: View, shape: Pixel, first_owns: Box, second_owns: Box
) -> tuple[Ints, Ints, Ints]:
    """Count pixels per pair of labels of two views of the same pixels.

    Args:
        first: Labels of one view.
        second: Labels of the other.
        shape: Height and width of what both show.
        first_owns: Rectangle of these pixels, half open, that the first view's block owns.
        second_owns: The same for the second.

    Returns:
        (n,) labels in the first, (n,) in the second, and (n, 3) pixels in all, on what the first owns, on what the second
        owns; ordered by label. One of the two labels may be 0, not both.

    Example:
        >>> a, b = np.array([[1, 1, 0, 0]], np.uint32), np.array([[9, 5, 5, 5, 0]], np.uint32)
        >>> [column.tolist() for column in count_overlaps(View(a), View(b, (0, 1)), (1, 4), (0, 0, 1, 2), (0, 2, 1, 4))]
        [[0, 1], [5, 5], [[1, 0, 1], [2, 2, 0]]]
    """
    owns = _plain(first_owns), _plain(second_owns)
    keys, counts = _count_overlaps(first.labels, first.at, second.labels, second.at, shape, *owns)
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), counts


@compile_loop
def _add_border(
    touching: NDArray[np.uint64], borders: Ints, used: int, sizes: Ints, one: Any, two: Any, length: int
) -> tuple[NDArray[np.uint64], Ints, int]:
    """Counts sides of pixels that two labels, or a label and background, share."""
    sizes[one, 2] += length
    sizes[two, 2] += length
    if one != 0 and two != 0:
        key = (np.uint64(min(one, two)) << np.uint64(32)) | np.uint64(max(one, two))
        place = _slot(touching, key)
        if touching[place] == _EMPTY:
            touching[place] = key
            used += 1
        borders[place, 0] += length
        if 2 * used > touching.size:
            touching, borders = _grown(touching, borders)
    return touching, borders, used


@compile_loop
def _describe(labels: Labels, count: int, owns: Box) -> tuple[Ints, Ints, Ints, Ints]:
    """Area, owned area, perimeter; boxes."""
    sizes = np.zeros((count + 1, 3), np.int64)
    boxes = np.zeros((count + 1, 4), np.int64)
    boxes[:, :2] = 1 << 40
    touching, borders = np.full(_START, _EMPTY, np.uint64), np.zeros((_START, 1), np.int64)
    used = 0
    height, width = labels.shape
    for y in range(height):
        row = labels[y]
        owned_row = owns[0] <= y < owns[2]
        start = 0
        while start < width:
            label = row[start]
            stop = start + 1
            while stop < width and row[stop] == label:
                stop += 1
            if label != 0:
                sizes[label, 0] += stop - start
                if owned_row:
                    sizes[label, 1] += _shared_length(start, stop, owns[1], owns[3])
                boxes[label, 0] = min(boxes[label, 0], y)
                boxes[label, 1] = min(boxes[label, 1], start)
                boxes[label, 2] = y + 1
                boxes[label, 3] = max(boxes[label, 3], stop)
            if stop < width:
                touching, borders, used = _add_border(touching, borders, used, sizes, label, row[stop], 1)
            start = stop
        if y + 1 == height:
            break
        below = labels[y + 1]
        start = 0
        while start < width:
            label, other = row[start], below[start]
            stop = start + 1
            while stop < width and row[stop] == label and below[stop] == other:
                stop += 1
            if label != other:
                touching, borders, used = _add_border(touching, borders, used, sizes, label, other, stop - start)
            start = stop
    pairs, lengths = _sorted_table(touching, borders)
    contacts = np.zeros((pairs.size, 3), np.int64)
    for row in range(pairs.size):
        contacts[row, 0] = pairs[row] >> np.uint64(32)
        contacts[row, 1] = pairs[row] & np.uint64(0xFFFFFFFF)
        contacts[row, 2] = lengths[row, 0]
    return sizes[1:, :2], boxes[1:], sizes[1:, 2], contacts


def describe_labels(labels: Labels, count: int, owns: Box) -> tuple[Ints, Ints, Ints, Ints]:
    """Measure all labels of a view, in one pass.

    Args:
        labels: (y, x), ids 1..count.
        count: The largest id.
        owns: Rectangle of pixels (y0, x0, y1, x1), half open.

    Returns:
        (count, 2) area, and area on that rectangle; (count, 4) box as y0, x0, y1, x1; (count,) perimeter as sides of pixels that
        another label or background shares, the view's own edge left out; (m, 3) pairs of ids that touch, the lower first, and
        how many sides of pixels they share.

    Example:
        >>> sizes, boxes, perimeter, contacts = describe_labels(np.array([[1, 1, 2], [0, 1, 2]], np.uint32), 2, (0, 0, 2, 2))
        >>> sizes.tolist(), boxes.tolist(), perimeter.tolist(), contacts.tolist()
        ([[3, 3], [2, 0]], [[0, 0, 2, 2], [0, 2, 2, 3]], [4, 2], [[1, 2, 2]])
    """
    return _describe(labels, count, _plain(owns))


def load() -> None:
    """Compile or load the kernels that every block needs, at worker start-up: it takes seconds."""
    describe_labels(np.zeros((2, 2), np.uint32), 0, (0, 0, 2, 2))


@compile_loop
def _overlay(
    painted: NDArray[Any], painted_at: Pixel, labels: Labels, labels_at: Pixel, shape: Pixel, ids: Ints, size: Ints
) -> None:
    height, width = shape
    for y in range(height):
        row = labels[labels_at[0] + y, labels_at[1] : labels_at[1] + width]
        onto = painted[painted_at[0] + y, painted_at[1] : painted_at[1] + width]
        for x in range(width):
            # Past the end: from another moment than the ids. Nothing here checks an index.
            if row[x] == 0 or row[x] >= ids.size:
                continue
            claimed = ids[row[x]]
            if claimed <= 0:
                continue
            has = np.int64(onto[x])
            if has == 0 or (
                has != claimed and (size[claimed] < size[has] or (size[claimed] == size[has] and claimed < has))
            ):
                onto[x] = claimed


def overlay(painted: NDArray[Any], at: Pixel, view: View, shape: Pixel, ids: Ints, size: Ints) -> None:
    """Paint a view's objects onto what is painted already, in place.

    Args:
        painted: (y, x) ids in the slide, 0 = background.
        at: Row and column of it where the view begins.
        view: Labels to paint.
        shape: Height and width to paint, in pixels.
        ids: Id in the slide of each label, by label; 0 or less = not painted here.
        size: Area by id in the slide: of two objects that claim a pixel the smaller one gets it, of equals the lower id.

    Example:
        >>> painted = np.array([[4, 4, 0, 0]], np.uint32)
        >>> ids, size = np.array([0, 7]), np.array([0, 0, 0, 0, 9, 0, 0, 3])
        >>> overlay(painted, (0, 1), View(np.array([[1, 1]], np.uint32)), (1, 2), ids, size)
        >>> painted.tolist()
        [[4, 7, 7, 0]]
    """
    _overlay(painted, at, view.labels, view.at, shape, ids, size)


@compile_loop
def _measure(labels: NDArray[Any]) -> tuple[NDArray[np.uint64], Ints]:
    keys, counts = np.full(_START, _EMPTY, np.uint64), np.zeros((_START, 7), np.int64)
    used = 0
    height, width = labels.shape
    for y in range(height):
        row = labels[y]
        start = 0
        while start < width:
            label = row[start]
            stop = start + 1
            while stop < width and row[stop] == label:
                stop += 1
            if label != 0:
                key = np.uint64(label)
                place = _slot(keys, key)
                if keys[place] == _EMPTY:
                    keys[place] = key
                    used += 1
                    counts[place, 3], counts[place, 4] = y, start
                length = stop - start
                counts[place, 0] += length
                counts[place, 1] += y * length
                counts[place, 2] += (start + stop - 1) * length // 2
                counts[place, 4] = min(counts[place, 4], start)
                counts[place, 5] = y + 1
                counts[place, 6] = max(counts[place, 6], stop)
                if 2 * used > keys.size:
                    keys, counts = _grown(keys, counts)
            start = stop
    return _sorted_table(keys, counts)


def measure_labels(labels: NDArray[Any]) -> tuple[Ints, Ints]:
    """Measure what can be added up over the fragments of an object.

    Args:
        labels: (y, x) any unsigned ids, 0 = background.

    Returns:
        (n,) ids, ascending, and (n, 7) area, sum of y, sum of x, and box as y0, x0, y1, x1, all in pixels of this array.

    Example:
        >>> measure_labels(np.array([[0, 7, 7], [9, 7, 0]], np.uint32))
        (array([7, 9]), array([[3, 1, 4, 0, 1, 2, 3],
               [1, 1, 0, 1, 0, 2, 1]]))
    """
    keys, counts = _measure(labels)
    return keys.astype(np.int64), counts
