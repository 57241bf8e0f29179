"""What QuPath's GeoJSON reader takes, for detections, and takes without losing anything: stricter than the reader itself.

After `QuPathTypeAdapters`, `ROITypeAdapters` and `GsonTools.PathClassTypeAdapter` in qupath-core of QuPath 0.5
(`qupath.lib.io`), and JTS, which builds the rings. What the reader takes but changes or drops silently (an id that is no UUID,
an unknown object type) is refused here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

_COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
_POSITION = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_RING = {"type": "array", "items": _POSITION, "minItems": 4, "closed": True}
_POLYGON = {"type": "array", "items": _RING, "minItems": 1}


def _mapping(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these keys and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _geometry(kind: str, coordinates: dict[str, Any]) -> dict[str, Any]:
    return _mapping({"type": {"const": kind}, "coordinates": coordinates})


FEATURE = _mapping(
    {
        "type": {"const": "Feature"},
        # UUID.fromString; of another id nothing is kept.
        "id": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
        "geometry": {
            "oneOf": [
                _geometry("Polygon", _POLYGON),
                _geometry("MultiPolygon", {"type": "array", "items": _POLYGON, "minItems": 2}),
            ]
        },
        "properties": _mapping(
            {
                "objectType": {"const": "detection"},
                # A Map of Double: null and NaN are logged or fail.
                "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                "isLocked": {"type": "boolean"},
            },
            # PathClassProxy; without a color "Unable to parse PathClass" is thrown.
            {"classification": _mapping({"name": {"type": "string", "pattern": r"\S"}, "color": _COLOUR})},
        ),
    }
)
COLLECTION = _mapping({"type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": FEATURE}})


def _find_open_rings(validator: Any, closed: bool, ring: Any, schema: Any) -> Iterator[Exception]:
    """JTS: "Points of LinearRing do not form a closed linestring"."""
    if closed and isinstance(ring, list) and ring and ring[0] != ring[-1]:
        yield ValidationError(f"a ring from {ring[0]} to {ring[-1]} isn't closed")


# JSON Schema takes 1.0 for an integer; Gson's int[] is read from whole numbers, and ours are written so.
_VALIDATOR = extend(
    Draft202012Validator,
    {"closed": _find_open_rings},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)(COLLECTION)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Gson throws for a key that comes twice."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"a key comes twice: {[key for key, _ in pairs]}")
    return dict(pairs)


def read_collection(text: str | bytes) -> dict[str, Any]:
    """Read a FeatureCollection as QuPath would, complaining about all that it stumbles over.

    Raises:
        ValueError: It isn't JSON, has NaN, infinity or a key twice, or an id comes twice.
        jsonschema.ValidationError: It doesn't have the form.
    """
    collection = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    _VALIDATOR.validate(collection)
    ids = [feature["id"] for feature in collection["features"]]
    if len(set(ids)) < len(ids):
        raise ValueError("an id comes twice")
    return dict(collection)
