"""Regions of interest: the parts of a slide that a person wants computed, read from a GeoJSON file or written as a rectangle.

Coordinates are pixels of level 0: x to the right, y down, from the upper left corner of the first pixel, as QuPath exports them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError, in_one_line
from slidesam.tasks.grid import BlockGrid

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_NUMBER = r"\d+(?:\.\d+)?"
_RECTANGLE = re.compile(r"\s*" + r"\s*[,\s]\s*".join([f"({_NUMBER})"] * 4) + r"\s*(px|um|µm|μm)?\s*")
# More than a person draws: the file of a whole slide's cells was meant for something else.
_MOST_REGIONS, _MOST_BYTES = 1000, 2**26
_CURE = "give a GeoJSON file of polygons, such as QuPath exports of annotations, or x, y, width, height in px or um"


@dataclass(frozen=True)
class RegionsOfInterest:
    """Named polygons on level 0.

    Attributes:
        names: A name for each, no two alike.
        polygons: Polygons and multipolygons of shapely, valid.
    """

    names: tuple[str, ...]
    polygons: tuple[BaseGeometry, ...]

    @property
    def identity(self) -> str:
        """SHA-256 of names and polygons, hexadecimal: part of the fingerprints."""
        import shapely

        parts = [part for pair in zip(self.names, self.polygons, strict=True) for part in pair]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.encode() if isinstance(part, str) else shapely.to_wkb(part, byte_order=1))
            digest.update(b"\0")
        return digest.hexdigest()

    def find_blocks(self, grid: BlockGrid) -> list[int]:
        """Find the blocks whose outer region a region meets: all that see an object in it.

        Returns:
            Their ids, ascending.
        """
        import shapely

        corners = np.array([block.outer for block in grid], float)
        boxes = shapely.box(corners[:, 1], corners[:, 0], corners[:, 3], corners[:, 2])
        found = shapely.STRtree(boxes).query(np.array(self.polygons), predicate="intersects")[1]
        block_ids: list[int] = np.unique(found).tolist()
        return block_ids

    def find_points(self, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.str_]:
        """Return the name of the first region that each point lies in, on its border too; empty where there is none.

        Args:
            rows: (n,) from 0 at the middle of the first row, in pixels, as the table of objects has centroids.
            columns: (n,) the same.
        """
        import shapely

        found: NDArray[np.str_] = np.full(len(rows), "", dtype=f"<U{max(map(len, self.names))}")
        # The last first, so that the first region that holds a point names it.
        for name, polygon in reversed(list(zip(self.names, self.polygons, strict=True))):
            shapely.prepare(polygon)
            found[shapely.intersects_xy(polygon, np.asarray(columns) + 0.5, np.asarray(rows) + 0.5)] = name
        return found

    def measure_areas(self, shape: tuple[int, int]) -> dict[str, float]:
        """Return the area of what lies on the slide of each region, in square pixels.

        Args:
            shape: Height and width of the slide's level 0.
        """
        import shapely

        slide = shapely.box(0, 0, shape[1], shape[0])
        return {name: polygon.intersection(slide).area for name, polygon in zip(self.names, self.polygons, strict=True)}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the polygons as arrays, for `from_arrays`."""
        import shapely

        texts = [shapely.to_wkb(polygon, byte_order=1) for polygon in self.polygons]
        return {"polygons": np.frombuffer(b"".join(texts), np.uint8), "ends": np.cumsum([len(text) for text in texts])}

    @classmethod
    def from_arrays(cls, names: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> RegionsOfInterest:
        """Make them from what `to_arrays` returned."""
        import shapely

        text, ends = arrays["polygons"].tobytes(), [0, *arrays["ends"].tolist()]
        texts = [text[start:end] for start, end in pairwise(ends)]
        return cls(names, tuple(shapely.from_wkb(texts)))


def is_rectangle(region: str) -> bool:
    """Whether a setting is a rectangle in numbers, and not the path of a file."""
    return _RECTANGLE.fullmatch(region) is not None


def read_regions(region: str, shape: tuple[int, int], mpp: tuple[float, float] | None) -> RegionsOfInterest:
    """Read regions of interest.

    Args:
        region: Path of a GeoJSON file, also gzipped, or `x, y, width, height` with `px` (the default) or `um` behind.
        shape: Height and width of the slide's level 0.
        mpp: Its pixel size in micrometres (y, x); None = unknown.

    Raises:
        SettingsError: The file can't be read, holds no polygon or an invalid one, a region lies outside of the slide, or
            micrometres are given and the pixel size isn't known.
    """
    rectangle = _RECTANGLE.fullmatch(region)
    regions = _read_rectangle(rectangle, mpp) if rectangle else _read_file(Path(region))
    for name, area in regions.measure_areas(shape).items():
        if not area > 0:
            raise SettingsError(
                f"setting blocks.region: {name} of {region} lies outside of the slide, which has {shape[1]} × {shape[0]} px "
                "(width × height): coordinates are pixels of its full resolution"
            )
    return regions


def _read_rectangle(rectangle: re.Match[str], mpp: tuple[float, float] | None) -> RegionsOfInterest:
    import shapely

    x, y, width, height = map(float, rectangle.groups()[:4])
    scale_y = scale_x = 1.0
    if rectangle[5] not in (None, "px"):
        if mpp is None:
            raise SettingsError(
                f"setting blocks.region: {rectangle[0]} is in µm, but the slide doesn't say its pixel size: give pixels, or "
                "slide.mpp"
            )
        scale_y, scale_x = mpp
    if not (width and height):
        raise SettingsError(f"setting blocks.region: {rectangle[0]} has no area: give x, y, width, height")
    box = shapely.box(x / scale_x, y / scale_y, (x + width) / scale_x, (y + height) / scale_y)
    return RegionsOfInterest(("region",), (box,))


def _read_file(path: Path) -> RegionsOfInterest:
    features = list(_list_features(path, _load_json(path)))
    if not features:
        raise SettingsError(f"setting blocks.region: {path} has no polygon: {_CURE}")
    if len(features) > _MOST_REGIONS:
        raise SettingsError(
            f"setting blocks.region: {path} has {len(features)} objects, more than {_MOST_REGIONS}: export annotations only, "
            "not detections"
        )
    polygons = tuple(_read_polygon(path, number, feature) for number, feature in enumerate(features, 1))
    return RegionsOfInterest(_name_regions(features), polygons)


def _load_json(path: Path) -> object:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SettingsError(f"setting blocks.region: {path} is larger than 64 MiB: export annotations only")
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise SettingsError(f"setting blocks.region: {path} holds more than 64 MiB: export annotations only")
        loaded: object = json.loads(content)
    except (OSError, ValueError, RecursionError, EOFError) as error:
        raise SettingsError(
            f"setting blocks.region: {path} can't be read ({in_one_line(error) or type(error).__name__}): {_CURE}"
        ) from error
    return loaded


def _list_features(path: Path, content: object) -> Iterator[Mapping[str, Any]]:
    """List what a file holds as features, be it a collection, a list, a feature or a geometry alone."""
    if isinstance(content, list):
        for feature in content:
            yield from _list_features(path, feature)
    elif isinstance(content, dict) and content.get("type") == "FeatureCollection":
        yield from _list_features(path, content.get("features") or [])
    elif isinstance(content, dict) and content.get("type") == "Feature":
        yield content
    elif isinstance(content, dict) and content.get("type") == "GeometryCollection":
        yield from _list_features(path, content.get("geometries") or [])
    elif isinstance(content, dict) and "coordinates" in content:
        yield {"geometry": content}
    else:
        raise SettingsError(f"setting blocks.region: {path} isn't GeoJSON: {_CURE}")


def _read_polygon(path: Path, number: int, feature: Mapping[str, Any]) -> BaseGeometry:
    import shapely

    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise SettingsError(
            f"setting blocks.region: object {number} of {path} is {kind or 'nothing'}, no polygon: {_CURE}"
        )
    try:
        polygon = shapely.from_geojson(json.dumps(geometry))
    except shapely.errors.GEOSException as error:
        raise SettingsError(
            f"setting blocks.region: polygon {number} of {path} can't be read ({in_one_line(error)}): {_CURE}"
        ) from error
    polygon = shapely.force_2d(polygon)
    if polygon.is_empty or not np.isfinite(shapely.get_coordinates(polygon)).all():
        raise SettingsError(f"setting blocks.region: polygon {number} of {path} has no points, or no numbers: {_CURE}")
    if not polygon.is_valid:
        raise SettingsError(
            f"setting blocks.region: polygon {number} of {path} isn't valid ({shapely.is_valid_reason(polygon)}, x and y in "
            "pixels): correct it where it was drawn"
        )
    normalized: BaseGeometry = polygon.normalize()
    return normalized


def _name_regions(features: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """Name regions by their name, or else their class; a second one of a name gets a number."""
    named = [_find_name(feature) or "region" for feature in features]
    is_repeated = {name for name, count in Counter(named).items() if count > 1}
    taken, names, numbers = set(named), [], Counter[str]()
    for name in named:
        unique = name
        while name in is_repeated and (unique == name or unique in taken):
            numbers[name] += 1
            unique = f"{name} {numbers[name]}"
        taken.add(unique)
        names.append(unique)
    return tuple(names)


def _find_name(feature: Mapping[str, Any]) -> str | None:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    classification = properties.get("classification")
    classified = classification.get("name") if isinstance(classification, dict) else classification
    for name in (properties.get("name"), classified):
        if isinstance(name, str | int | float) and not isinstance(name, bool) and str(name).strip():
            return " ".join(str(name).split())[:80]
    return None
