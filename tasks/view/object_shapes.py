"""Find which object lies at a pixel, and the shape of an object."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from slidesam.tasks.export.outlines import trace_outlines
from slidesam.tasks.grid import Region
from slidesam.tasks.store.pyramids import ShownLevel

# An object without a row in a table is looked for around the pixel that was pointed at; of larger ones no shape is shown.
_AROUND, _LARGEST_SIDE = 512, 4096
Rings = list[list[list[int]]]


def find_object(levels: Sequence[ShownLevel], y: int, x: int) -> int:
    """Return the number of the object at a pixel of level 0; 0 where there is none, and outside of the slide.

    Raises:
        OutputError: A file of the label image is damaged.
    """
    height, width = levels[0].shape
    if not (0 <= y < height and 0 <= x < width):
        return 0
    return int(levels[0].read(Region(y, x, y + 1, x + 1), (0,))[0, 0, 0])


def surround(levels: Sequence[ShownLevel], y: int, x: int) -> tuple[int, int, int, int]:
    """Return a box around a pixel, inside of the slide."""
    height, width = levels[0].shape
    return max(y - _AROUND, 0), max(x - _AROUND, 0), min(y + _AROUND, height), min(x + _AROUND, width)


def trace_rings(levels: Sequence[ShownLevel], object_id: int, box: tuple[int, int, int, int]) -> Rings:
    """Trace the outline of an object, as far as it lies in a box.

    Args:
        levels: The label image.
        object_id: The object.
        box: y0, x0, y1, x1 on level 0.

    Returns:
        Rings of x, y in pixels of level 0, holes among them; none of an object that is very large.

    Raises:
        OutputError: A file of the label image is damaged.
    """
    region = Region(*box)
    if max(region.shape) > _LARGEST_SIDE:
        return []
    labels = levels[0].read(region, (0,))[..., 0]
    outlines = trace_outlines((labels == object_id).astype(np.uint32), 1)
    points = outlines.points.astype(np.int64) + np.array([region.x0, region.y0])
    return [points[first:last].tolist() for first, last in pairwise(outlines.ring_starts.tolist())]
