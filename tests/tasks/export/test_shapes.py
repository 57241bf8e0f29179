"""Outlines as shapes: the same rings as the GeoJSON's, and with fewer points still valid."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slidesam.tasks.export import shapes
from slidesam.tasks.export.geojson import encode_features
from slidesam.tasks.export.outlines import Outlines, trace_outlines
from slidesam.tasks.export.shapes import encode_polygons, simplify_outlines

ORIGIN = (70_000, 3)
LABELS = arrays.arrays(
    np.uint32, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14), elements=st.integers(0, 3)
)


def draw_cells(side: int, seed: int) -> np.ndarray:
    """Touching cells with ragged borders, holes, and single pixels of others."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + rng.integers(-1, 2, (2, side, side))
    cells = (1 + y // 16 * (side // 16 + 1) + x // 16).clip(0)
    return np.where(rng.random(cells.shape) < 0.02, 0, cells).astype(np.uint32)


def read_shapes(outlines: Outlines, count: int) -> list[shapely.Geometry]:
    """The shapes that GeoJSON gives."""
    ids = [f"{number:08x}-0000-0000-0000-000000000000" for number in range(count)]
    text = encode_features(outlines, ORIGIN, ids, [], np.zeros((count, 0)))
    return [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in json.loads(b"[" + text + b"]")]


def is_same(one: shapely.Geometry, other: shapely.Geometry) -> bool:
    return one.geom_type == other.geom_type and np.array_equal(
        shapely.get_coordinates(one), shapely.get_coordinates(other)
    )


@given(labels=LABELS, tolerance=st.sampled_from([0.0, 1.0, 2.5]))
@settings(deadline=None, max_examples=60)
def test_wkb_has_the_rings_of_the_geojson(labels: np.ndarray, tolerance: float) -> None:
    count = int(labels.max())
    outlines = simplify_outlines(trace_outlines(labels, count), tolerance)
    polygons = encode_polygons(outlines, ORIGIN)
    shapes, expected = shapely.from_wkb(polygons.texts), read_shapes(outlines, count)
    assert all(map(is_same, shapes, expected))
    assert len(shapes) == len(expected) == np.unique(labels[labels > 0]).size
    assert polygons.bounds.tolist() == [list(shape.bounds) for shape in expected]
    assert polygons.is_multi.tolist() == [shape.geom_type == "MultiPolygon" for shape in expected]
    assert all(text[0] == 1 for text in polygons.texts)


@given(labels=LABELS, tolerance=st.sampled_from([0.6, 1.0, 2.5, 40.0]))
@settings(deadline=None, max_examples=150)
def test_simplified_outlines_stay_valid_and_near(labels: np.ndarray, tolerance: float) -> None:
    check_simplified(labels, tolerance)


@pytest.mark.parametrize("tolerance", [0.8, 1.5, 4.0])
def test_simplified_cells_stay_valid_and_near(tolerance: float) -> None:
    exact, simple = check_simplified(draw_cells(160, 5), tolerance)
    assert len(simple.points) < len(exact.points) * (0.95 if tolerance < 1 else 0.8)


def check_simplified(labels: np.ndarray, tolerance: float) -> tuple[Outlines, Outlines]:
    count = int(labels.max())
    exact = trace_outlines(labels, count)
    simple = simplify_outlines(exact, tolerance)
    assert [array.dtype for array in simple] == [array.dtype for array in exact]
    before, after = (shapely.from_wkb(encode_polygons(outlines, (0, 0)).texts) for outlines in (exact, simple))
    assert len(before) == len(after)
    # Holes inside, parts that don't cross: all of it is what valid means.
    assert shapely.is_valid(after).all()
    assert not shapely.is_empty(after).any()
    for one, other in zip(before, after, strict=True):
        assert shapely.get_num_geometries(one) == shapely.get_num_geometries(other)
        assert len(one.wkt) >= len(other.wkt)
        corners = set(map(tuple, shapely.get_coordinates(one).tolist()))
        assert set(map(tuple, shapely.get_coordinates(other).tolist())) <= corners
        distances = shapely.distance(shapely.points(shapely.get_coordinates(one)), other.boundary)
        # Twice at the corner where a ring begins: GEOS leaves that out last.
        assert distances.max() <= 2 * tolerance
    return exact, simple


def test_nothing_is_left_out_at_0_and_of_nothing() -> None:
    outlines = trace_outlines(draw_cells(48, 1), 100)
    assert simplify_outlines(outlines, 0) is outlines
    nothing = trace_outlines(np.zeros((4, 4), np.uint32), 0)
    assert simplify_outlines(nothing, 2) is nothing
    assert not encode_polygons(nothing, (0, 0)).texts.size


def test_an_object_that_would_become_invalid_keeps_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = trace_outlines(draw_cells(48, 1), 100)
    bow_tie = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    simplify = shapely.simplify

    def break_first(shapes: np.ndarray, *arguments: object, **options: object) -> np.ndarray:
        found = simplify(shapes, *arguments, **options)
        found[0] = bow_tie
        return found

    monkeypatch.setattr(shapely, "simplify", break_first)
    simple = simplify_outlines(exact, 2.0)
    first = exact.ring_starts[np.searchsorted(exact.ring_objects, exact.ring_objects[0], "right")]
    np.testing.assert_array_equal(simple.points[:first], exact.points[:first])
    assert len(simple.points) < len(exact.points)


def test_an_object_of_very_many_rings_keeps_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.kron(np.array([[1, 1], [2, 2]], np.uint32), np.ones((20, 40), np.uint32))
    labels[2:18:3, 2:78:3] = 0
    labels[30, 3:40] = 0
    exact = trace_outlines(labels, 2)
    monkeypatch.setattr(shapes, "_MOST_RINGS", 50)
    simple = simplify_outlines(exact, 3.0)
    kept = exact.ring_starts[(exact.ring_objects == 1).sum()]
    np.testing.assert_array_equal(simple.points[:kept], exact.points[:kept])
    assert len(simple.points) < len(exact.points)
