"""Draw polygons as labels: a pixel belongs to a polygon if its centre lies inside.

That is the inverse of the outlines that slidesam writes (`tasks/export/outlines.py`): drawn, they give the label image back.
Inside is what a line crosses the rings an odd number of times to reach, so holes are left out. A centre exactly on a border
belongs to the polygon on its right, or below, as graphics cards have it: neighbours that share a border share no pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import Ints, Labels, compile_loop

Points = NDArray[np.float64]


class ObjectPolygons(NamedTuple):
    """Objects as rings.

    Attributes:
        points: (p, 2) x, y in pixels from the image's upper left corner; a ring's first point isn't repeated at its end.
        ring_starts: (r + 1,) where each ring begins in `points`.
        object_starts: (n + 1,) where each object's rings begin; object i has the label i + 1.
        boxes: (n, 4) least x and y, greatest x and y.
        notes: What a person should know of them, a sentence each.
    """

    points: Points
    ring_starts: Ints
    object_starts: Ints
    boxes: Points
    notes: tuple[str, ...] = ()

    @classmethod
    def of_rings(
        cls, points: Points, ring_starts: Ints, object_starts: Ints, notes: tuple[str, ...] = ()
    ) -> ObjectPolygons:
        """Add the boxes; each object has rings, each ring has points."""
        begins = ring_starts[object_starts[:-1]]
        ends = (np.minimum, np.maximum) if begins.size else ()
        boxes = [end.reduceat(points, begins) for end in ends]
        return cls(points, ring_starts, object_starts, np.hstack(boxes) if boxes else np.zeros((0, 4)), notes)


@compile_loop
def _toggle_row_ends(points: Points, first: int, last: int, origin: tuple[int, int], odd: NDArray[np.bool_]) -> None:
    """Note for each edge of a ring, in each row, from which pixel on the centres lie right of it."""
    height, width = odd.shape
    for place in range(first, last):
        one, other = points[place], points[place + 1 if place + 1 < last else first]
        # The same numbers for the two polygons that share an edge, whichever way they run.
        if one[1] > other[1] or (one[1] == other[1] and one[0] > other[0]):
            one, other = other, one
        top, bottom = one[1] - origin[0], other[1] - origin[0]
        for y in range(int(np.ceil(max(top, 0.0) - 0.5)), int(np.ceil(min(bottom, height) - 0.5))):
            x = one[0] + (y + 0.5 + origin[0] - one[1]) * (other[0] - one[0]) / (other[1] - one[1])
            column = max(0.0, np.ceil(x - origin[1] - 0.5))
            if column < width:
                odd[y, int(column)] = not odd[y, int(column)]


@compile_loop
def _draw(
    points: Points, ring_starts: Ints, object_starts: Ints, boxes: Points, objects: Ints, origin: tuple[int, int],
    labels: Labels,
) -> None:  # fmt: skip
    height, width = labels.shape
    odd = np.zeros((height, width), np.bool_)
    for number in objects:
        for ring in range(object_starts[number], object_starts[number + 1]):
            _toggle_row_ends(points, ring_starts[ring], ring_starts[ring + 1], origin, odd)
        left, top, right, bottom = boxes[number]
        for y in range(max(0, int(top) - origin[0] - 1), min(height, int(bottom) - origin[0] + 2)):
            is_inside = False
            for x in range(max(0, int(left) - origin[1] - 1), min(width, int(right) - origin[1] + 2)):
                if odd[y, x]:
                    is_inside = not is_inside
                    odd[y, x] = False
                if is_inside:
                    labels[y, x] = number + 1


def draw_polygons(polygons: ObjectPolygons, region: Region) -> Labels:
    """Draw the part of all objects that lies in a region; where objects overlap, the last one has the pixels.

    Returns:
        (y, x) labels: 1 for the first object.

    Example:
        >>> triangle = ObjectPolygons.of_rings(np.array([[0.0, 0], [3, 0], [0, 3]]), np.array([0, 3]), np.array([0, 1]))
        >>> draw_polygons(triangle, Region(0, 0, 3, 3)).tolist()
        [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    labels = np.zeros(region.shape, np.uint32)
    boxes = polygons.boxes
    is_near = (
        (boxes[:, 0] < region.x1) & (boxes[:, 1] < region.y1) & (boxes[:, 2] > region.x0) & (boxes[:, 3] > region.y0)
    )
    objects = np.flatnonzero(is_near)
    origin = int(region.y0), int(region.x0)
    _draw(*polygons[:4], objects, origin, labels)
    return labels


@compile_loop
def _side(a: Points, b: Points, c: Points) -> Any:
    """Return which side of the line from a to b the point c lies on: its sign, 0 on it."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


@compile_loop
def _find_crossing(points: Points, ring_starts: Ints, object_starts: Ints) -> tuple[int, float, float]:
    """Find the first object whose edges cross, and a point near it; -1 = there is none."""
    for number in range(object_starts.size - 1):
        first, last = ring_starts[object_starts[number]], ring_starts[object_starts[number + 1]]
        following = np.arange(first + 1, last + 1)
        for ring in range(object_starts[number], object_starts[number + 1]):
            following[ring_starts[ring + 1] - 1 - first] = ring_starts[ring]
        lows, highs = np.empty(last - first), np.empty(last - first)
        for edge in range(last - first):
            y0, y1 = points[first + edge, 1], points[following[edge], 1]
            lows[edge], highs[edge] = min(y0, y1), max(y0, y1)
        order = np.argsort(lows)
        for place in range(order.size):
            edge = order[place]
            a, b = points[first + edge], points[following[edge]]
            for next_place in range(place + 1, order.size):
                other = order[next_place]
                if lows[other] >= highs[edge]:
                    break
                c, d = points[first + other], points[following[other]]
                if max(a[0], b[0]) <= min(c[0], d[0]) or max(c[0], d[0]) <= min(a[0], b[0]):
                    continue
                if _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0:
                    return number, c[0], c[1]
    return -1, 0.0, 0.0


def find_crossing(polygons: ObjectPolygons) -> tuple[int, float, float] | None:
    """Find an object whose rings cross themselves or each other; touching isn't crossing.

    Returns:
        Its place among the objects, and x and y near the first crossing.

    Example:
        >>> bow = np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]])
        >>> find_crossing(ObjectPolygons.of_rings(bow, np.array([0, 4]), np.array([0, 1])))[0]
        0
    """
    number, x, y = _find_crossing(*polygons[:3])
    return None if number < 0 else (int(number), float(x), float(y))
