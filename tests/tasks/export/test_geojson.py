"""Text of outlines: QuPath's reader would take it, and it says what the arrays say."""

from __future__ import annotations

import copy
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError
from rasterio.features import rasterize
from scipy import ndimage

from slidesam.tasks.export.geojson import FeatureClasses, encode_features
from slidesam.tasks.export.outlines import trace_outlines
from tests.support.qupath_schema import read_collection

LABELS = np.array(
    [
        [1, 1, 1, 0, 0, 5],
        [1, 0, 1, 3, 0, 0],
        [1, 1, 0, 3, 3, 5],
        [0, 0, 0, 0, 0, 0],
    ],
    np.uint32,
)
IDS = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(1, 6)]
NAMES = ["Area µm^2", 'Mean "DAPI" \\ 1']
VALUES = np.array([[7.5, 1e-3], [0, 0], [math.nan, -2.25], [0, 0], [math.inf, -math.inf]])
CLASSES = FeatureClasses([("Tumor", (200, 0, 0)), ('Fünf "5"', (0, 10, 255))], np.array([0, -1, 1, 0, -1]))


def encode(labels: np.ndarray = LABELS, origin: tuple[int, int] = (0, 0)) -> bytes:
    return encode_features(trace_outlines(labels, len(IDS)), origin, IDS, NAMES, VALUES, CLASSES)


def collect(features: bytes) -> bytes:
    """The file of which these are the features."""
    return b'{"type":"FeatureCollection","features":[\n' + features + b"\n]}\n"


def test_the_text_of_an_object_in_full() -> None:
    lines = encode(LABELS[1:3, 3:5]).decode().split("\n")
    assert lines == [
        '{"type":"Feature","id":"' + IDS[2] + '","geometry":{"type":"Polygon","coordinates":'
        '[[[0,0],[1,0],[1,1],[2,1],[2,2],[0,2],[0,0]]]},"properties":{"objectType":"detection",'
        '"classification":{"name":"Fünf \\"5\\"","color":[0,10,255]},'
        '"measurements":{"Mean \\"DAPI\\" \\\\ 1":-2.25},"isLocked":false}}'
    ]


def test_the_reader_takes_every_object_that_has_pixels() -> None:
    features = read_collection(collect(encode()))["features"]
    assert [feature["id"] for feature in features] == [IDS[0], IDS[2], IDS[4]]
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon", "Polygon", "MultiPolygon"]
    assert [len(feature["geometry"]["coordinates"]) for feature in features] == [2, 1, 2]
    assert [feature["properties"]["measurements"] for feature in features] == [
        {NAMES[0]: 7.5, NAMES[1]: 0.001},
        {NAMES[1]: -2.25},
        {},
    ]
    classes = [feature["properties"].get("classification") for feature in features]
    assert classes == [
        {"name": "Tumor", "color": [200, 0, 0]},
        {"name": 'Fünf "5"', "color": [0, 10, 255]},
        None,
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300_000), st.integers(0, 300_000))
@example(0, 299_999, 0)
def test_features_give_the_labels_back_at_their_place(seed: int, y: int, x: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (7, 9)).astype(np.uint32)
    features = read_collection(collect(encode(labels, (y, x))))["features"]
    shapes = [(shapely.geometry.shape(feature["geometry"]), IDS.index(feature["id"]) + 1) for feature in features]
    assert all(shape.is_valid for shape, _ in shapes)
    moved = rasterize(shapes, out_shape=labels.shape, transform=(1, 0, x, 0, 1, y), dtype="uint32")
    np.testing.assert_array_equal(moved, labels)


def test_no_outlines_give_no_text() -> None:
    assert encode(np.zeros((3, 3), np.uint32)) == b""


def test_equal_arguments_give_equal_bytes_and_no_blanks() -> None:
    text = encode()
    assert text == encode(LABELS.copy())
    features = [
        json.dumps(feature, separators=(",", ":"), ensure_ascii=False) for feature in json.loads(b"[" + text + b"]")
    ]
    assert ",\n".join(features).encode() == text


def written(values: list[float]) -> list[str]:
    """How numbers are written, as one object's measurements."""
    outlines, names = trace_outlines(np.ones((1, 1), np.uint32), 1), [f"n{place}" for place in range(len(values))]
    text = encode_features(outlines, (0, 0), IDS[:1], names, np.array([values])).decode()
    feature = json.loads(text, parse_int=str, parse_float=str)
    return list(feature["properties"]["measurements"].values())


def test_numbers_are_short() -> None:
    expected = {
        -0.0: "0", 7.0: "7", -12.0: "-12", 0.1: "0.1", 2 / 3: "0.666667", -1234.5678: "-1234.57",
        99999.96: "100000", 1234567.5: "1234568", 123456789012345.0: "123456789012345", 10.0000001: "10",
        0.00123: "0.00123", 1e-6: "0.000001", 0.99999999: "1", 12345.96: "12346", 100.05: "100.05", 9.99999996e-7: "0.000001",
        1e-7: "1e-7", 1.5e300: "1.5e300", -2.5e-10: "-2.5e-10", 1e15: "1e15", 5e-324: "4.94066e-324", 999999999999999.9: "1e15",
    }  # fmt: skip
    assert dict(zip(expected, written(list(expected)), strict=True)) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_numbers_are_right_to_six_digits(values: list[float]) -> None:
    for value, text in zip(values, written(values), strict=True):
        assert float(text) == pytest.approx(value, rel=5.0001e-6, abs=1e-320)
        assert len(text) <= 17
        assert abs(value) >= 1e15 or value != int(value) or float(text) == value


MUTATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no type": lambda feature: feature.pop("type"),
    "another type": lambda feature: feature.update(type="Object"),
    "no id": lambda feature: feature.pop("id"),
    "an id that is no UUID": lambda feature: feature.update(id="17"),
    "an id that is a number": lambda feature: feature.update(id=17),
    "no geometry": lambda feature: feature.update(geometry=None),
    "a line": lambda feature: feature["geometry"].update(type="LineString"),
    "a MultiPolygon's type": lambda feature: feature["geometry"].update(type="MultiPolygon"),
    "an open ring": lambda feature: feature["geometry"]["coordinates"][0].pop(),
    "too short a ring": lambda feature: feature["geometry"]["coordinates"].append([[0, 0], [1, 1], [0, 0]]),
    "no rings": lambda feature: feature["geometry"].update(coordinates=[]),
    "half a pixel": lambda feature: feature["geometry"]["coordinates"][0].__setitem__(1, [0.5, 0]),
    "three coordinates": lambda feature: feature["geometry"]["coordinates"][0].__setitem__(1, [1, 0, 0]),
    "no objectType": lambda feature: feature["properties"].pop("objectType"),
    "an unknown objectType": lambda feature: feature["properties"].update(objectType="nucleus"),
    "object_type": lambda feature: feature["properties"].update(object_type="detection"),
    "a classification without color": lambda feature: feature["properties"]["classification"].pop("color"),
    "a color of floats": lambda feature: feature["properties"]["classification"].update(color=[1.0, 0.5, 0]),
    "a color of whole floats": lambda feature: feature["properties"]["classification"].update(color=[255.0, 0.0, 0.0]),
    "a color of two": lambda feature: feature["properties"]["classification"].update(color=[1, 2]),
    "a color beyond 255": lambda feature: feature["properties"]["classification"].update(color=[1, 2, 256]),
    "a color by name": lambda feature: feature["properties"]["classification"].update(color="red"),
    "a class without a name": lambda feature: feature["properties"]["classification"].update(name=""),
    "NaN": lambda feature: feature["properties"]["measurements"].update(Area=math.nan),
    "infinity": lambda feature: feature["properties"]["measurements"].update(Area=math.inf),
    "null": lambda feature: feature["properties"]["measurements"].update(Area=None),
    "a number as text": lambda feature: feature["properties"]["measurements"].update(Area="7"),
    "a list of measurements": lambda feature: feature["properties"].update(measurements=[{"name": "Area", "value": 7}]),
    "isLocked as text": lambda feature: feature["properties"].update(isLocked="false"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_schema_refuses(name: str) -> None:
    collection = read_collection(collect(encode()))
    changed = copy.deepcopy(collection)
    MUTATIONS[name](changed["features"][0])
    with pytest.raises((ValidationError, ValueError)):
        read_collection(json.dumps(changed))
    assert read_collection(json.dumps(collection)) == collection


def test_the_schema_refuses_what_comes_twice() -> None:
    with pytest.raises(ValueError, match="an id comes twice"):
        read_collection(collect(b",\n".join([encode(LABELS[:, :3])] * 2)))
    with pytest.raises(ValueError, match="a key comes twice"):
        read_collection(collect(encode()).replace(b'"isLocked"', b'"isLocked":true,"isLocked"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": IDS[:4], "values": VALUES[:4], "classes": None}, "an outline of object 5, but 4 ids"),
        ({"ids": ["17", *IDS[1:]]}, "UUIDs"),
        ({"ids": [IDS[0].upper(), *IDS[1:]]}, "UUIDs"),
        ({"values": VALUES[:, :1]}, "5 ids, but"),
        ({"names": ["a", "a"]}, "same name: a, a"),
        ({"classes": FeatureClasses(CLASSES.named, np.full(5, 2))}, "beyond the 2 classes"),
        ({"classes": FeatureClasses(CLASSES.named, np.zeros(4, int))}, "5 ids, but"),
        ({"classes": FeatureClasses([("a", (0, 0, 256))], np.zeros(5, int))}, "0 to 255"),
        ({"origin": (-1, 0)}, "origin"),
    ],
)
def test_arguments_that_dont_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"origin": (0, 0), "ids": IDS, "names": NAMES, "values": VALUES, "classes": CLASSES}
    with pytest.raises(ValueError, match=message):
        encode_features(trace_outlines(LABELS, 5), **{**arguments, **change})


def test_dense_labels_are_taken_by_the_reader() -> None:
    """Touching cells, some in two parts, each with its values and class."""
    rng = np.random.default_rng(5)
    seeds = np.zeros((200, 200), np.uint32)
    seeds[rng.integers(0, 200, 60), rng.integers(0, 200, 60)] = 1
    count = int(seeds.sum())
    seeds[seeds > 0] = np.arange(1, count + 1)
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    labels = seeds[tuple(nearest)]
    labels[rng.random(labels.shape) < 0.02] = 0
    ids = [str(uuid.UUID(int=number)) for number in range(count)]
    values, classes = rng.random((count, 3)), FeatureClasses(CLASSES.named, rng.integers(0, 2, count))
    text = encode_features(trace_outlines(labels, count), (0, 0), ids, ["a", "b", "c"], values, classes)
    features = read_collection(collect(text))["features"]
    areas = [shapely.geometry.shape(feature["geometry"]).area for feature in features]
    assert areas == np.bincount(labels.ravel())[1:].tolist()
    assert [feature["id"] for feature in features] == ids
    measured = [list(feature["properties"]["measurements"].values()) for feature in features]
    np.testing.assert_allclose(measured, values, rtol=5.001e-6)
    named = [feature["properties"]["classification"]["name"] for feature in features]
    assert named == [CLASSES.named[place][0] for place in classes.of_objects]
