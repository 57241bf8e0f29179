"""Read outlines of objects from GeoJSON, as slidesam and QuPath write it, one feature at a time."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from slidesam.tasks.compare.rasterize import ObjectPolygons, find_crossing
from slidesam.tasks.errors import SettingsError, in_one_line

_PIECE = 2**20  # characters that are read at once
_LONGEST = 2**28  # characters of one feature
_FEATURES = re.compile(r'"features"\s*:\s*\[')
_LIST = re.compile(r"\s*\[")
_BETWEEN = re.compile(r"[\s,]*")
# What reading a file raises that isn't GeoJSON, or not as it should be.
_UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)
# QuPath's kinds of objects that a detector makes; an annotation around them isn't one of them.
_DETECTED = ("detection", "cell", "tile")


class Outline(NamedTuple):
    """An object as a file has it.

    Attributes:
        parts: ObjectPolygons of rings of (x, y) points.
        is_detection: Whether QuPath's kind of object says that it was detected.
    """

    parts: list[list[list[list[float]]]]
    is_detection: bool


class _Builder:
    """Collects rings in little memory: 16 bytes a point."""

    def __init__(self) -> None:
        self._points, self._rings, self._objects = array("d"), array("q", [0]), array("q", [0])

    def add(self, outline: Outline) -> None:
        """Add an object, unless it has no area."""
        for part in outline.parts:
            for ring in part:
                closed = ring[:-1] if len(ring) > 1 and ring[0][:2] == ring[-1][:2] else ring
                if len(closed) < 3:
                    continue
                n_before = len(self._points)
                self._points.extend(chain.from_iterable(closed))
                if len(self._points) - n_before != 2 * len(closed):
                    del self._points[n_before:]
                    self._points.extend(
                        chain.from_iterable(point[:2] for point in closed)
                    )  # a third number is the height
                self._rings.append(len(self._points) // 2)
        if len(self._rings) - 1 > self._objects[-1]:
            self._objects.append(len(self._rings) - 1)

    def __len__(self) -> int:
        return len(self._objects) - 1

    def build(self, notes: tuple[str, ...]) -> ObjectPolygons:
        """Return what was added."""
        points = np.frombuffer(self._points, np.float64).reshape(-1, 2) if self._points else np.zeros((0, 2))
        return ObjectPolygons.of_rings(
            points, np.array(self._rings, np.int64), np.array(self._objects, np.int64), notes
        )


def read_outline_file(path: Path, shape: tuple[int, int]) -> ObjectPolygons:
    """Read the objects of a GeoJSON file, in the file's order; of a file with detections only these.

    Args:
        path: GeoJSON, or the same compressed by gzip.
        shape: Height and width of the slide in pixels, the unit of the coordinates.

    Raises:
        SettingsError: It isn't GeoJSON, has no polygons, or one of them crosses itself or lies outside of the slide.
    """
    detected, others, n_flat = _Builder(), _Builder(), 0
    try:
        with _open_text(path) as stream:
            for feature in iterate_features(stream):
                outline = _read_outline(feature)
                if outline is None:
                    n_flat += 1
                    continue
                (detected if outline.is_detection else others).add(outline)
    except _UNREADABLE as error:
        what = f"{path} isn't GeoJSON ({in_one_line(error, 160)})"
        raise SettingsError(what, "export it again: File > Export objects as GeoJSON in QuPath") from error
    chosen = detected if len(detected) else others
    notes: tuple[str, ...] = ()
    if n_flat:
        notes = (f"{path.name}: {n_flat} features without an area are left out",)
    if len(detected) and len(others):
        notes += (f"{path.name}: {len(others)} annotations are left out, because it has detections",)
    polygons = chosen.build(notes)
    _check(path, polygons, shape)
    return polygons


def _open_text(path: Path) -> IO[str]:
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8-sig") if is_compressed else path.open(encoding="utf-8-sig")


def iterate_features(stream: IO[str]) -> Iterator[Mapping[str, Any]]:
    """Read the features of a FeatureCollection, a list of features, or a single one, without holding all in memory.

    Raises:
        ValueError: It isn't JSON, or a feature is no mapping.
    """
    text = stream.read(_PIECE)
    begin = _LIST.match(text) or _FEATURES.search(text)
    if begin is None:
        whole = _as_mapping(json.loads(text + stream.read(_LONGEST)))
        yield from map(_as_mapping, whole.get("features", [whole]))
        return
    decoder, place = json.JSONDecoder(), begin.end()
    while True:
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
        try:
            if text[place : place + 1] == "]":
                return
            feature, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            # Perhaps its end isn't read yet.
            more = stream.read(max(_PIECE, len(text) - place)) if len(text) - place < _LONGEST else ""
            if not more:
                raise
            text, place = text[place:] + more, 0
            continue
        yield _as_mapping(feature)


def _as_mapping(feature: Any) -> Mapping[str, Any]:
    if not isinstance(feature, dict):
        raise ValueError(f"a feature is {in_one_line(json.dumps(feature), 40)}")
    return feature


def _read_outline(feature: Mapping[str, Any]) -> Outline | None:
    """Read an object; None if it has no area, as points and lines."""
    geometry = feature.get("geometry", feature) or {}
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        return None
    properties = feature.get("properties") or {}
    kind_of_object = properties.get("objectType") or properties.get("object_type")
    parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    return Outline(parts, kind_of_object in _DETECTED)


def _check(path: Path, polygons: ObjectPolygons, shape: tuple[int, int]) -> None:
    n_objects = len(polygons.boxes)
    if not n_objects:
        raise SettingsError(f"{path} has no polygons", "export the objects of the slide, not of another image")
    if not np.isfinite(polygons.points).all():
        raise SettingsError(f"{path} has coordinates that aren't numbers", "export it again")
    left, top, right, bottom = polygons.boxes.T
    is_outside = (right <= 0) | (bottom <= 0) | (left >= shape[1]) | (top >= shape[0])
    if is_outside.any():
        example = ", ".join(f"{value:.6g}" for value in polygons.boxes[np.argmax(is_outside), :2])
        raise SettingsError(
            f"{path}: {int(is_outside.sum())} of {n_objects} objects lie outside of the slide of {shape[0]} × {shape[1]} px "
            f"(one at x, y = {example})",
            "coordinates have to be pixels of the slide's full resolution, and of the same slide",
        )
    crossing = find_crossing(polygons)
    if crossing is not None:
        number, x, y = crossing
        raise SettingsError(
            f"{path}: the outline of object {number + 1} crosses itself near x, y = {x:.6g}, {y:.6g}",
            "draw it again, or leave the object out",
        )
