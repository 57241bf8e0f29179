"""Write outlines as the text of GeoJSON features, as QuPath 0.5 to 0.7 imports them.

The text is written by compiled code into one buffer; strings are encoded beforehand. The order of keys and the form of numbers
are fixed, so equal objects give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.outlines import Outlines
from slidesam.tasks.labels.kernels import Ints, compile_loop

Text = NDArray[np.uint8]
Colour = tuple[int, int, int]
_Integer = int | np.int64
# Places of the texts that every feature has, in this order, before those of measurements, classes and ids. Numba compiles a
# function once more for each plain integer that is passed as a constant, not for numpy's.
_ID, _POLYGON, _MULTI_POLYGON, _NEXT_PART, _END_POLYGON, _END_MULTI_POLYGON, _PROPERTIES, _END, _NEXT = np.arange(9)
_FIXED = (
    b'{"type":"Feature","id":"',
    b'","geometry":{"type":"Polygon","coordinates":[',
    b'","geometry":{"type":"MultiPolygon","coordinates":[[',
    b"],[",
    b"]}",
    b"]]}",
    b',"properties":{"objectType":"detection",',
    b'},"isLocked":false}}',
    b",\n",
)
_MEASUREMENTS = b'"measurements":{'
_ZERO, _MINUS, _POINT, _COMMA, _OPEN, _CLOSE, _E = (ord(letter) for letter in "0-.,[]e")
# 10⁻⁶ to 10¹⁵.
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(-6, 16)])
_LONGEST_NUMBER = 24
_UUID_LENGTH = 36


class FeatureClasses(NamedTuple):
    """The classes of objects.

    Attributes:
        named: Name and colour (red, green, blue, 0 to 255) of each class.
        of_objects: (count,) each object's place in `named`; -1 = it has none.
    """

    named: Sequence[tuple[str, Colour]]
    of_objects: NDArray[np.integer]


class _Strings(NamedTuple):
    """Texts one after the other.

    Attributes:
        letters: All of them, UTF-8.
        starts: (n + 1,) where each begins.
    """

    letters: Text
    starts: Ints


def _join_strings(texts: Sequence[bytes]) -> _Strings:
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=starts[1:])
    return _Strings(np.frombuffer(b"".join(texts), np.uint8), starts)


@compile_loop
def _put_text(buffer: Text, used: int, strings: _Strings, place: _Integer) -> int:
    first, last = int(strings.starts[place]), int(strings.starts[place + 1])
    for letter in range(first, last):
        buffer[used + letter - first] = strings.letters[letter]
    return used + last - first


@compile_loop
def _put_whole(buffer: Text, used: int, number: _Integer) -> int:
    """Write a whole number, not negative."""
    stop = used + 1
    rest = number // 10
    while rest > 0:
        stop += 1
        rest //= 10
    for place in range(stop - 1, used - 1, -1):
        buffer[place] = _ZERO + number % 10
        number //= 10
    return stop


@compile_loop
def _put_digits(buffer: Text, used: int, digits: _Integer, n_digits: int, exponent: int) -> int:
    """Write digits × 10^(exponent - n_digits + 1), the exponent beyond a point that is -6 to 5 places away."""
    is_plain = -6 <= exponent <= 5
    whole_digits = exponent + 1 if is_plain else 1
    if whole_digits <= 0:
        buffer[used], buffer[used + 1] = _ZERO, _POINT
        used += 2
        for _ in range(-whole_digits):
            buffer[used] = _ZERO
            used += 1
    for place in range(max(n_digits, whole_digits)):
        if place == whole_digits and place > 0:
            buffer[used] = _POINT
            used += 1
        buffer[used] = _ZERO + (digits // 10 ** (n_digits - 1 - place) % 10 if place < n_digits else 0)
        used += 1
    if is_plain:
        return used
    buffer[used] = _E
    used += 1
    if exponent < 0:
        buffer[used] = _MINUS
        used += 1
    return _put_whole(buffer, used, abs(exponent))


@compile_loop
def _put_number(buffer: Text, used: int, value: float) -> int:
    """Write a finite number: whole from 100 000 to 10¹⁵ and where it is whole below, else its six leading digits."""
    if value < 0:
        buffer[used] = _MINUS
        used += 1
        value = -value
    if 1e5 <= value < 1e15:
        value = np.rint(value)
    if value < 1e15 and value == np.floor(value):
        return _put_whole(buffer, used, np.int64(value))
    exponent = -6
    while value < 1e-6:
        value *= 1e15
        exponent -= 15
    while value >= 1e15:
        value /= 1e15
        exponent += 15
    place = 0
    while value >= _POWERS[place + 1]:
        place += 1
    exponent += place
    # Powers of ten up to 10²² are exact in floating point, others not.
    scaled = value * _POWERS[17 - place] if place <= 11 else value / _POWERS[place - 5]
    digits, n_digits = np.int64(np.rint(scaled)), 6
    if digits == 1_000_000:
        digits = np.int64(100_000)
        exponent += 1
    while digits % 10 == 0:
        digits //= 10
        n_digits -= 1
    return _put_digits(buffer, used, digits, n_digits, exponent)


@compile_loop
def _put_point(buffer: Text, used: int, x: int, y: int) -> int:
    buffer[used] = _OPEN
    used = _put_whole(buffer, used + 1, x)
    buffer[used] = _COMMA
    used = _put_whole(buffer, used + 1, y)
    buffer[used] = _CLOSE
    return used + 1


@compile_loop
def _put_geometry(
    buffer: Text,
    used: int,
    strings: _Strings,
    outlines: Outlines,
    first_ring: int,
    stop_ring: int,
    origin: tuple[int, int],
) -> int:
    parts, starts = outlines.ring_parts, outlines.ring_starts
    is_multi = parts[stop_ring - 1] > 0
    used = _put_text(buffer, used, strings, _MULTI_POLYGON if is_multi else _POLYGON)
    for ring in range(first_ring, stop_ring):
        if ring > first_ring:
            if parts[ring] == parts[ring - 1]:
                buffer[used] = _COMMA
                used += 1
            else:
                used = _put_text(buffer, used, strings, _NEXT_PART)
        buffer[used] = _OPEN
        used += 1
        for place in range(starts[ring], starts[ring + 1] + 1):
            point = outlines.points[place if place < starts[ring + 1] else starts[ring]]
            used = _put_point(buffer, used, point[0] + origin[1], point[1] + origin[0])
            buffer[used] = _COMMA
            used += 1
        buffer[used - 1] = _CLOSE
    return _put_text(buffer, used, strings, _END_MULTI_POLYGON if is_multi else _END_POLYGON)


@compile_loop
def _put_measurements(buffer: Text, used: int, strings: _Strings, first_name: int, values: NDArray[np.float64]) -> int:
    is_first = True
    for column in range(values.size):
        if np.isfinite(values[column]):
            if not is_first:
                buffer[used] = _COMMA
                used += 1
            is_first = False
            used = _put_text(buffer, used, strings, first_name + column)
            used = _put_number(buffer, used, values[column])
    return used


@compile_loop
def _put_features(
    buffer: Text,
    strings: _Strings,
    outlines: Outlines,
    origin: tuple[int, int],
    values: NDArray[np.float64],
    class_texts: Ints,
    first_id: int,
) -> int:
    """Write the features of all objects that have rings; `class_texts` says which text holds each object's class."""
    used, ring, n_rings = int(outlines.ring_starts[0]), 0, outlines.ring_objects.size
    while ring < n_rings:
        stop, object_id = ring + 1, outlines.ring_objects[ring]
        while stop < n_rings and outlines.ring_objects[stop] == object_id:
            stop += 1
        if used > 0:
            used = _put_text(buffer, used, strings, _NEXT)
        used = _put_text(buffer, used, strings, _ID)
        used = _put_text(buffer, used, strings, first_id + object_id - 1)
        used = _put_geometry(buffer, used, strings, outlines, ring, stop, origin)
        used = _put_text(buffer, used, strings, _PROPERTIES)
        used = _put_text(buffer, used, strings, class_texts[object_id - 1])
        used = _put_measurements(buffer, used, strings, len(_FIXED), values[object_id - 1])
        used = _put_text(buffer, used, strings, _END)
        ring = stop
    return used


def _encode_class(name: str, colour: Colour) -> bytes:
    if not all(0 <= part <= 255 for part in colour):
        raise ValueError(f"the colour {colour} of {name!r}: three whole numbers from 0 to 255 are needed")
    content = {"name": name, "color": [int(part) for part in colour]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b'"classification":' + text.encode() + b"," + _MEASUREMENTS


def _check_sizes(
    outlines: Outlines, ids: Sequence[str], names: Sequence[str], values: NDArray[np.float64], classes: FeatureClasses
) -> None:
    """Refuse what compiled code would read beyond an end, and what QuPath would drop or stop at."""
    count = len(ids)
    if values.shape != (count, len(names)) or classes.of_objects.shape != (count,):
        shapes = f"{values.shape} values of {len(names)} names, {classes.of_objects.shape} classes"
        raise ValueError(f"{count} ids, but {shapes}")
    if int(outlines.ring_objects.max(initial=0)) > count:
        raise ValueError(f"an outline of object {int(outlines.ring_objects.max())}, but {count} ids")
    if len(set(names)) < len(names):
        raise ValueError(f"measurements of the same name: {', '.join(names)}")
    if not set("".join(ids)) <= set("0123456789abcdef-") or any(len(text) != _UUID_LENGTH for text in ids):
        raise ValueError("ids have to be UUIDs as Python writes them")
    if not ((classes.of_objects >= -1) & (classes.of_objects < len(classes.named))).all():
        raise ValueError(f"classes of objects beyond the {len(classes.named)} classes")


def encode_features(
    outlines: Outlines,
    origin: tuple[int, int],
    ids: Sequence[str],
    names: Sequence[str],
    values: NDArray[np.float64],
    classes: FeatureClasses | None = None,
) -> bytes:
    """Write the objects of a window as the features of a GeoJSON FeatureCollection, without what surrounds them.

    A measurement that isn't finite is left out of its object. Whole numbers below 10¹⁵ are written in full, others from 100 000
    on rounded to whole ones, the rest to six significant digits; with an exponent only below 10⁻⁶ and from 10¹⁵ on.

    Args:
        outlines: As `trace_outlines` returns them.
        origin: (y, x) of the window on the slide, not negative, in px of level 0.
        ids: (count,) UUID of each local id from 1 on, in lower case.
        names: (k,) names of measurements with their units, each different.
        values: (count, k) measurements.
        classes: What class each object has; None = there are no classes.

    Returns:
        UTF-8, features in order of their local id, one a line, with a comma between two; empty if there are no outlines.

    Raises:
        ValueError: Arguments don't fit each other, or would give text that QuPath refuses.

    Example:
        >>> from slidesam.tasks.export.outlines import trace_outlines
        >>> outlines = trace_outlines(np.ones((1, 2), np.uint32), 1)
        >>> classes = FeatureClasses([("a", (9, 8, 7))], np.zeros(1, int))
        >>> number = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
        >>> text = encode_features(outlines, (5, 3), [number], ["Area px^2"], np.array([[2.0]]), classes).decode()
        >>> feature = json.loads(text)
        >>> feature["geometry"]
        {'type': 'Polygon', 'coordinates': [[[3, 5], [5, 5], [5, 6], [3, 6], [3, 5]]]}
        >>> text[text.index("detection") :]
        'detection","classification":{"name":"a","color":[9,8,7]},"measurements":{"Area px^2":2},"isLocked":false}}'
    """
    classes = FeatureClasses([], np.full(len(ids), -1)) if classes is None else classes
    _check_sizes(outlines, ids, names, values, classes)
    start = int(origin[0]), int(origin[1])
    if min(start) < 0:
        raise ValueError(f"the origin {start} is negative")
    measured = [json.dumps(name, ensure_ascii=False).encode() + b":" for name in names]
    classified = [_MEASUREMENTS, *(_encode_class(name, colour) for name, colour in classes.named)]
    before_ids = [*_FIXED, *measured, *classified]
    strings = _join_strings([*before_ids, *(text.encode() for text in ids)])
    class_texts = len(_FIXED) + len(measured) + 1 + classes.of_objects.astype(np.int64)
    # An upper bound: memory that isn't touched isn't taken.
    object_size = sum(map(len, _FIXED + tuple(measured))) + max(map(len, classified)) + _UUID_LENGTH
    size = outlines.ring_objects.size * (object_size + _LONGEST_NUMBER * len(names) + len(names))
    size += (len(outlines.points) + outlines.ring_objects.size) * 2 * _LONGEST_NUMBER
    buffer = np.empty(size, np.uint8)
    contiguous = np.ascontiguousarray(values, np.float64)
    used = _put_features(buffer, strings, outlines, start, contiguous, class_texts, len(before_ids))
    return buffer[:used].tobytes()
