"""Outlines against shapely (valid?), GDAL (rasterised back, the same labels?) and counted pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.features import rasterize
from scipy import ndimage

from slidesam.tasks.export.outlines import Outlines, trace_outlines
from tests.support.memory import measure_peak

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10)
# Few labels in little space touch in every way; most of the first strategy's arrays have one value nearly everywhere.
LABELS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint32, shape, elements=st.integers(0, 3)))
NOISE = st.builds(
    lambda seed, shape, ids: np.random.default_rng(seed).integers(0, ids + 1, shape).astype(np.uint32),
    st.integers(0, 2**32 - 1),
    SHAPES,
    st.integers(1, 3),
)


def drawn(text: str) -> np.ndarray:
    """Labels from digits, a row a word, "." = background."""
    return np.array([[0 if digit == "." else int(digit) for digit in row] for row in text.split()], np.uint32)


CASES = {
    "one pixel": "1",
    "nothing": "...",
    "a ring": "111 1.1 111",
    "diagonal pixels are two parts": "1. .1",
    "one part that touches itself, its hole open at the corner": "111 1.1 11.",
    "holes that touch each other": "1111 1.11 11.1 1111",
    "a hole that touches the exterior twice, at corners of other parts": "1111. 1..1. 1.1.. 11..1 ..111",
    "a part that touches the hole it lies in": "11111 1...1 1.1.1 1...1 11111",
    "a part that touches its hole's corners": "11111 1.1.1 11.11 1.1.1 11111",
    "a checkerboard": "1.1.1 .1.1. 1.1.1",
    "two checkerboards": "12121 21212 12121",
    "nested objects": "11111 12221 12321 12221 11111",
    "an object in many parts, some in its own holes": "1111111 1.....1 1.111.1 1.1.1.1 1.111.1 1.....1 1111111",
    "a spiral": "111111 .....1 1111.1 1..1.1 1.11.1 1....1 111111",
    "an absent id": "1.3",
}


class Ring(NamedTuple):
    """One ring, (n, 2) x, y, of a part of an object."""

    points: np.ndarray
    of_object: int
    of_part: int


def rings(outlines: Outlines) -> Iterator[Ring]:
    bounds = zip(outlines.ring_starts[:-1], outlines.ring_starts[1:], strict=True)
    for (start, stop), *owner in zip(bounds, outlines.ring_objects, outlines.ring_parts, strict=True):
        yield Ring(outlines.points[start:stop], *(int(number) for number in owner))


def shapes(outlines: Outlines) -> dict[int, list[shapely.Polygon]]:
    """The parts of each object."""
    parts: dict[int, dict[int, list[np.ndarray]]] = {}
    for ring in rings(outlines):
        parts.setdefault(ring.of_object, {}).setdefault(ring.of_part, []).append(ring.points)
    return {
        number: [shapely.Polygon(exterior, holes) for exterior, *holes in polygons.values()]
        for number, polygons in parts.items()
    }


def signed_area(points: np.ndarray) -> float:
    """By the shoelace formula: positive for exteriors, negative for holes."""
    x, y = points.astype(np.int64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def check(labels: np.ndarray) -> None:
    count = int(labels.max(initial=0))
    outlines = trace_outlines(labels, count)
    assert [array.dtype.name for array in outlines] == ["int32", "int64", "int32", "int32"]
    polygons = shapes(outlines)
    check_order(outlines)
    assert sorted(polygons) == list(polygons) == np.unique(labels[labels > 0]).tolist()
    if not polygons:
        return
    whole = {number: shapely.MultiPolygon(parts) for number, parts in polygons.items()}
    assert all(
        shapely.is_valid(shape) for shape in [*whole.values(), *(part for parts in polygons.values() for part in parts)]
    )
    painted = rasterize([(shape, number) for number, shape in whole.items()], out_shape=labels.shape, dtype="uint32")
    np.testing.assert_array_equal(painted, labels)
    areas = np.zeros(count + 1)
    for ring in rings(outlines):
        check_ring(ring.points)
        areas[ring.of_object] += signed_area(ring.points)
    assert areas[1:].tolist() == np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
    for number, parts in polygons.items():
        assert shapely.union_all(parts).area == areas[number]
        components, n_components = ndimage.label(labels == number)
        assert sorted(part.area for part in parts) == sorted(np.bincount(components.ravel())[1:].tolist())
        assert len(parts) == n_components


def check_ring(points: np.ndarray) -> None:
    """Corners only: each side is horizontal or vertical, in turn, and no point comes twice."""
    sides = np.roll(points, -1, axis=0) - points
    assert ((sides == 0).sum(axis=1) == 1).all()
    assert (sides[:, 0].astype(bool) != np.roll(sides[:, 0], 1).astype(bool)).all()
    assert len(np.unique(points, axis=0)) == len(points) >= 4


def check_order(outlines: Outlines) -> None:
    """Objects ascend, parts count from 0, and each part's first ring alone is an exterior."""
    before = (0, -1)
    for ring in rings(outlines):
        owner = ring.of_object, ring.of_part
        is_first = owner != before
        assert (signed_area(ring.points) > 0) == is_first
        if is_first:
            assert owner == ((before[0], before[1] + 1) if owner[0] == before[0] else (owner[0], 0))
            assert owner > before
        before = owner
    assert outlines.ring_starts[0] == 0
    assert outlines.ring_starts[-1] == len(outlines.points)


@pytest.mark.parametrize("name", CASES)
def test_outlines_of_hard_cases(name: str) -> None:
    check(drawn(CASES[name]))


# The first example waits until the loops are compiled.
@settings(deadline=None)
@given(LABELS)
def test_outlines_are_valid_and_give_the_labels_back(labels: np.ndarray) -> None:
    check(labels)


@settings(deadline=None)
@given(NOISE)
@example(np.zeros((0, 3), np.uint32))
def test_outlines_of_noise_are_valid_and_give_the_labels_back(labels: np.ndarray) -> None:
    check(labels)


def test_outlines_of_large_noise() -> None:
    rng = np.random.default_rng(7)
    check((rng.random((160, 120)) < 0.6).astype(np.uint32))
    check(rng.integers(0, 4, (120, 160)).astype(np.uint32))


def test_a_ring_that_would_touch_itself_is_split() -> None:
    exterior, hole = rings(trace_outlines(drawn("111 1.1 11."), 1))
    assert exterior.points.tolist() == [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3]]
    assert {tuple(point) for point in hole.points.tolist()} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert (hole.of_object, hole.of_part) == (1, 0)


def test_a_slice_is_traced_as_its_copy() -> None:
    labels = np.random.default_rng(3).integers(0, 3, (20, 30)).astype(np.uint32)
    sliced, copied = (trace_outlines(part, 2) for part in (labels[3:17, 5:21], labels[3:17, 5:21].copy()))
    for one, other in zip(sliced, copied, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tracing_takes_little_memory() -> None:
    """Beside the labels 5 bytes a pixel, and the outlines twice."""
    labels = np.kron(np.arange(1, 10_001, dtype=np.uint32).reshape(100, 100), np.ones((15, 15), np.uint32))
    labels[::15] = 0
    trace_outlines(labels[:2], 10_000)
    kept = []
    peak = measure_peak(lambda: kept.append(trace_outlines(labels, 10_000)))
    assert len(kept[0].points) == 4 * 10_000
    assert peak < 5 * labels.size + 2 * sum(array.nbytes for array in kept[0]) + 2**20


def test_an_id_beyond_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="a label of 7, of 5 at most"):
        trace_outlines(np.full((2, 2), 7, np.uint32), 5)
