"""Outlines as shapes of shapely: with fewer points, and as well-known binary (WKB)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.outlines import Outlines

Shapes = NDArray[Any]
# GEOS compares each ring with the object's others: 10 000 take 4 s, and 40 000 a minute. More than these keep their points.
_MOST_RINGS = 2000


class Polygons(NamedTuple):
    """Outlines as WKB.

    Attributes:
        texts: (n,) bytes of each: ISO WKB, little endian, in px of level 0.
        bounds: (n, 4) float64 x0, y0, x1, y1 of each.
        is_multi: (n,) whether each is a MultiPolygon.
    """

    texts: NDArray[Any]
    bounds: NDArray[np.float64]
    is_multi: NDArray[np.bool_]


def simplify_outlines(outlines: Outlines, tolerance: float) -> Outlines:
    """Leave out points, such that no point of an outline lies farther than a tolerance from what is left of it.

    At the corner where GEOS begins a ring it may be twice the tolerance. Each object is simplified alone, by the algorithm of
    Douglas and Peucker with GEOS' checks that rings don't cross and that holes stay inside. An object that would become invalid
    all the same keeps its outline, as does one of more than 2000 rings. What is left are corners of pixels.

    Args:
        outlines: As `trace_outlines` returns them.
        tolerance: In pixels; 0 = all points stay.
    """
    import shapely

    if not tolerance or not outlines.ring_objects.size:
        return outlines
    objects, exact = _make_shapes(outlines, (0, 0))
    n_rings = np.unique(outlines.ring_objects, return_counts=True)[1]
    simpler = exact.copy()
    chosen = n_rings <= _MOST_RINGS
    simpler[chosen] = shapely.simplify(exact[chosen], tolerance, preserve_topology=True)
    is_usable = shapely.is_valid(simpler) & (shapely.get_num_geometries(simpler) == shapely.get_num_geometries(exact))
    return _make_outlines(objects, np.where(is_usable, simpler, exact))


def encode_polygons(outlines: Outlines, origin: tuple[int, int]) -> Polygons:
    """Write the outlines of the objects that have some as WKB: a Polygon each, or a MultiPolygon where it has several parts.

    Args:
        outlines: Of a window.
        origin: (y, x) of the window on the slide.

    Example:
        >>> import shapely
        >>> from slidesam.tasks.export.outlines import trace_outlines
        >>> polygons = encode_polygons(trace_outlines(np.ones((1, 2), np.uint32), 1), (5, 3))
        >>> shapely.from_wkb(polygons.texts).tolist(), polygons.bounds.tolist()
        ([<POLYGON ((3 5, 5 5, 5 6, 3 6, 3 5))>], [[3.0, 5.0, 5.0, 6.0]])
    """
    import shapely

    _, shapes = _make_shapes(outlines, origin)
    is_multi = shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON
    return Polygons(shapely.to_wkb(shapes, byte_order=1), shapely.bounds(shapes), is_multi)


def _make_shapes(outlines: Outlines, origin: tuple[int, int]) -> tuple[NDArray[np.int32], Shapes]:
    """Return local ids, and for each a Polygon, or a MultiPolygon where the object has several parts."""
    import shapely

    points = outlines.points + np.array([origin[1], origin[0]], np.float64)
    lengths = np.diff(outlines.ring_starts)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(lengths.size), lengths))
    is_first = np.ones(lengths.size, bool)
    is_first[1:] = (np.diff(outlines.ring_objects) != 0) | (np.diff(outlines.ring_parts) != 0)
    parts = shapely.polygons(rings, indices=np.cumsum(is_first) - 1)
    objects, first, counts = np.unique(outlines.ring_objects[is_first], return_index=True, return_counts=True)
    shapes = parts[first]
    is_multi = counts > 1
    if is_multi.any():
        among_multi = np.repeat(is_multi, counts)
        shapes[is_multi] = shapely.multipolygons(
            parts[among_multi], indices=np.repeat(np.arange(is_multi.sum()), counts[is_multi])
        )
    return objects, shapes


def _make_outlines(objects: NDArray[np.int32], shapes: Shapes) -> Outlines:
    import shapely

    parts, part_shapes = shapely.get_parts(shapes, return_index=True)
    rings, ring_parts = shapely.get_rings(parts, return_index=True)
    points, point_rings = shapely.get_coordinates(rings, return_index=True)
    # A ring's last point is its first.
    is_kept = np.append(point_rings[1:] == point_rings[:-1], False)
    starts = np.zeros(rings.size + 1, np.int64)
    np.cumsum(np.bincount(point_rings, minlength=rings.size) - 1, out=starts[1:])
    part_numbers = np.arange(parts.size) - np.searchsorted(part_shapes, part_shapes)
    return Outlines(
        points[is_kept].astype(np.int32),
        starts,
        objects[part_shapes[ring_parts]],
        part_numbers[ring_parts].astype(np.int32),
    )
