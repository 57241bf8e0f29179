"""ObjectPolygons drawn as labels: the inverse of our outlines, and as rasterio draws them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import rasterize

from slidesam.tasks.compare.outline_file import read_outline_file
from slidesam.tasks.compare.rasterize import draw_polygons
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.export.geojson import encode_features
from slidesam.tasks.export.outlines import trace_outlines
from slidesam.tasks.grid import Region

ID = "f81d4fae-7dec-11d0-a765-00a0c91e6b{:02x}"
FINE = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]]}


def write(path: Path, features: list, key: str = "features") -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", key: features}))
    return path


def feature(geometry: object, **properties: object) -> dict:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@given(arrays(np.uint32, (9, 8), elements=st.integers(0, 4)), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_our_outlines_drawn_are_the_labels(
    tmp_path_factory: pytest.TempPathFactory, labels: NDArray[np.uint32], height: int, width: int
) -> None:
    labels[0, 0] = 1
    ids = np.unique(labels[labels > 0])
    numbered = np.searchsorted(ids, labels).astype(np.uint32) + (labels > 0)
    count = ids.size
    text = encode_features(
        trace_outlines(numbered, count), (0, 0), [ID.format(n) for n in range(count)], [], np.zeros((count, 0))
    )
    path = tmp_path_factory.mktemp("outlines") / "o.geojson.gz"
    path.write_bytes(gzip.compress(b'{"type":"FeatureCollection","features":[\n' + text + b"\n]}"))
    polygons = read_outline_file(path, labels.shape)
    drawn = np.zeros_like(labels)
    for y in range(0, 9, height):
        for x in range(0, 8, width):
            region = Region(y, x, min(9, y + height), min(8, x + width))
            drawn[region.slices] = draw_polygons(polygons, region)
    np.testing.assert_array_equal(drawn, numbered)


def test_polygons_of_any_coordinates_are_drawn_as_rasterio_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = []
    for _ in range(40):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius, centre = rng.uniform(4, 14, 12), rng.uniform(-3, 103, 2)
        rings = [
            centre + scale * np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None] for scale in (1, 0.4)
        ]
        features.append(
            feature({"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings]})
        )
    polygons = read_outline_file(write(tmp_path / "p.geojson", features), (100, 100))
    shapes = [(each["geometry"], number) for number, each in enumerate(features, 1)]
    theirs = rasterize(shapes, out_shape=(100, 100))
    np.testing.assert_array_equal(draw_polygons(polygons, Region(0, 0, 100, 100)), theirs)


def test_neighbours_that_share_an_edge_share_no_pixel_and_lose_none(tmp_path: Path) -> None:
    corner, middle = [0.0, 0.0], [10.3, 9.7]
    rim = [[20, 0], [20, 20], [0, 20]]
    rings = [[corner, rim[0], middle], [rim[0], rim[1], middle], [rim[1], rim[2], middle], [rim[2], corner, middle]]
    features = [feature({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}) for ring in rings]
    alone = [
        draw_polygons(read_outline_file(write(tmp_path / "p.geojson", [each]), (20, 20)), Region(0, 0, 20, 20))
        for each in features
    ]
    np.testing.assert_array_equal(np.sum(alone, axis=0), np.ones((20, 20)))


def test_qupath_annotations_around_detections_are_left_out(tmp_path: Path) -> None:
    around = feature(
        {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}, objectType="annotation"
    )
    cells = [feature(FINE, objectType=kind) for kind in ("detection", "cell")]
    point = feature({"type": "Point", "coordinates": [1, 2]}, objectType="annotation")
    polygons = read_outline_file(write(tmp_path / "q.geojson", [around, *cells, point]), (10, 10))
    assert len(polygons.boxes) == 2
    assert [note.partition(": ")[2] for note in polygons.notes] == [
        "1 features without an area are left out",
        "1 annotations are left out, because it has detections",
    ]
    # QuPath's older versions write a list; and a file may hold a feature alone.
    for content, expected in (([around, around], 2), (around, 1), (FINE, 1)):
        (tmp_path / "list.json").write_text(json.dumps(content, indent=2))
        assert len(read_outline_file(tmp_path / "list.json", (10, 10)).boxes) == expected


def test_features_longer_than_what_is_read_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidesam.tasks.compare.outline_file._PIECE", 47)
    path = write(tmp_path / "p.geojson", [feature(FINE, name="é" * 100)] * 5)
    assert len(read_outline_file(path, (10, 10)).boxes) == 5


BOW = {"type": "Polygon", "coordinates": [[[1, 1], [5, 5], [5, 1], [1, 5], [1, 1]]]}
TWO = {"type": "MultiPolygon", "coordinates": [FINE["coordinates"], [[[3, 3], [8, 3], [8, 8], [3, 8], [3, 3]]]]}
AWAY = {"type": "Polygon", "coordinates": [[[100, 1], [105, 1], [105, 5], [100, 1]]]}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature(FINE), feature(BOW)], "object 2 crosses itself near x, y = 5, 1: draw it again"),
        ([feature(TWO)], "object 1 crosses itself"),
        (
            [feature(FINE), feature(AWAY)],
            r"1 of 2 objects lie outside of the slide of 10 × 10 px \(one at x, y = 100, 1\)",
        ),
        ([], "has no polygons"),
        ([feature({"type": "Polygon", "coordinates": [[[0, 0], [1e999, 1], [2, 2]]]})], "aren't numbers"),
        ([feature({"type": "Polygon", "coordinates": 7})], "isn't GeoJSON"),
        ([feature({"type": "Polygon"})], "isn't GeoJSON"),
        ([feature("Polygon")], "isn't GeoJSON"),
        ([{**feature(FINE), "properties": "none"}], "isn't GeoJSON"),
        ([feature({"type": "Polygon", "coordinates": [[[10**400, 0], [1, 1], [2, 2]]]})], "isn't GeoJSON"),
        ([feature({"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 2]]]})], "isn't GeoJSON"),
        ([7], "isn't GeoJSON"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_to_do(tmp_path: Path, features: list, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_outline_file(write(tmp_path / "p.geojson", features), (10, 10))


@pytest.mark.parametrize(
    "content", [b"", b"no json", b"\xff\xfe", b"\x1f\x8b1", b'{"features": [{"type": "Feat', b"[" * 99999]
)
def test_what_is_no_geojson_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.geojson"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"p.geojson isn't GeoJSON .*export it again|has no polygons"):
        read_outline_file(path, (10, 10))
