"""Parts of objects: what a region shows of each, and what the parts of all regions add up to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import measure_labels

Ints = NDArray[np.int64]
NO_PARTS: Ints = np.zeros((0, 8), np.int64)
"""What `measure_parts` returns of a region without objects."""


class Objects(NamedTuple):
    """Whole objects, by ascending id.

    Attributes:
        ids: (n,) ids.
        area: (n,) pixels.
        sums: (n, 2) sums of the pixels' rows and columns.
        boxes: (n, 4) y0, x0, y1, x1, half open.
        parts: (n,) of how many parts the object was added up.
    """

    ids: Ints
    area: Ints
    sums: Ints
    boxes: Ints
    parts: Ints


def measure_parts(labels: NDArray[Any], region: Region) -> Ints:
    """Measure what a region shows of objects.

    Args:
        labels: (y, x) ids of the region, 0 = background.
        region: Its place on the slide.

    Returns:
        (n, 8) id, area, sums of y and x, and box, in the slide's coordinates, by ascending id.

    Example:
        >>> measure_parts(np.array([[0, 7, 7]]), Region(10, 20, 11, 23))
        array([[ 7,  2, 20, 43, 10, 21, 11, 23]])
    """
    ids, measures = measure_labels(labels)
    origin = np.array(region[:2], np.int64)
    measures[:, 1:3] += measures[:, :1] * origin
    measures[:, 3:] += np.tile(origin, 2)
    return np.column_stack([ids, measures])


def add_up_parts(parts: Ints) -> Objects:
    """Add up the parts of each object.

    Args:
        parts: (m, 8) rows of `measure_parts`, of regions that don't overlap, in any order.
    """
    parts = parts[np.argsort(parts[:, 0], kind="stable")]
    ids, begins = np.unique(parts[:, 0], return_index=True)
    if not ids.size:
        return Objects(ids, ids, parts[:, 2:4], parts[:, 4:], ids)
    boxes = [np.minimum.reduceat(parts[:, 4:6], begins), np.maximum.reduceat(parts[:, 6:], begins)]
    sums = np.add.reduceat(parts[:, 1:4], begins)
    return Objects(ids, sums[:, 0], sums[:, 1:], np.hstack(boxes), np.diff(begins, append=len(parts)))
