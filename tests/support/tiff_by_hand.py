"""Write TIFF files with `struct`, so that any tag, any packing of bits and any codec can be in them (TIFF 6.0; BigTIFF)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

BYTE, ASCII, SHORT, LONG, RATIONAL, LONG8, IFD = 1, 2, 3, 4, 5, 16, 13
_FORMATS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", LONG8: "Q", IFD: "I", 18: "Q"}
Tags: TypeAlias = Mapping[int, tuple[int, Sequence[int]]]  # code: (type, values); a rational is two values
NO_TAG: tuple[int, Sequence[int]] = (0, ())


@dataclass(frozen=True)
class Directory:
    """An image: its tags, its encoded tiles or strips, and the directories in its SubIFDs."""

    tags: Tags
    segments: Sequence[bytes]
    children: Sequence[Directory] = field(default=())


@dataclass(frozen=True)
class Shape:
    """How an image is cut: rows of a strip, or height and width of a tile; samples interleaved or in planes of their own."""

    rows: int = 0
    tile: tuple[int, int] = (0, 0)
    is_separate: bool = False

    def tags(self) -> dict[int, tuple[int, Sequence[int]]]:
        """Return the tags that say so."""
        size = (
            {322: (SHORT, [self.tile[1]]), 323: (SHORT, [self.tile[0]])} if self.tile[0] else {278: (LONG, [self.rows])}
        )
        return {284: (SHORT, [2 if self.is_separate else 1]), **size}

    def cut(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        """Cut a (y, x, sample) image into (y, x, sample) tiles, padded with their last pixels, or strips."""
        if self.is_separate and image.shape[2] > 1:
            separate = (
                Shape(self.rows, self.tile).cut(image[..., sample : sample + 1]) for sample in range(image.shape[2])
            )
            return [segment for segments in separate for segment in segments]
        height, width = image.shape[:2]
        if not self.tile[0]:
            return [image[y : y + self.rows] for y in range(0, height, self.rows)]
        rows, columns = self.tile
        padded = np.pad(image, ((0, -height % rows), (0, -width % columns), (0, 0)), mode="edge")
        return [padded[y : y + rows, x : x + columns] for y in range(0, height, rows) for x in range(0, width, columns)]


def make_directory(
    image: NDArray[Any],
    photometric: int,
    shape: Shape,
    compression: int = 1,
    encode: Callable[[NDArray[Any]], bytes] | None = None,
    bits: int | Sequence[int] = 0,
    order: str = "<",
    tags: Tags | None = None,
    children: Sequence[Directory] = (),
) -> Directory:
    """Make a directory from a (y, x) or (y, x, sample) array.

    Args:
        image: Samples as they are stored.
        photometric: PhotometricInterpretation.
        shape: How it is cut.
        compression: Code of the method.
        encode: Encodes one tile or strip; packs plain numbers if none is given.
        bits: Bits of a sample, if not those of its type.
        order: Byte order of the file.
        tags: Further tags, and others than those that follow from the image; `NO_TAG` leaves one out.
        children: SubIFDs.
    """
    image = np.atleast_3d(image)
    height, width, samples = image.shape
    depths = [bits or image.dtype.itemsize * 8] * samples if isinstance(bits, int) else bits
    packed = encode or (lambda segment: pack(segment, depths[0], order))
    made: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, depths), 259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        277: (SHORT, [samples]), 339: (SHORT, [{"u": 1, "i": 2, "f": 3, "b": 1}[image.dtype.kind]] * samples), **shape.tags(),
    }  # fmt: skip
    made |= tags or {}
    return Directory(
        {code: tag for code, tag in made.items() if tag != NO_TAG},
        [packed(segment) for segment in shape.cut(image)],
        children,
    )


def pack(segment: NDArray[Any], bits: int, order: str) -> bytes:
    """Pack numbers as a strip stores them: whole bytes in the file's order, or bits row by row from the highest on."""
    if bits == segment.dtype.itemsize * 8 and segment.dtype.kind != "b":
        return np.ascontiguousarray(segment.astype(segment.dtype.newbyteorder(order))).tobytes()
    rows = segment.reshape(len(segment), -1, 1).astype(np.uint64)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    return np.packbits((rows >> places & 1).astype(np.uint8).reshape(len(segment), -1), axis=1).tobytes()


def write_directories(path: Path, directories: Sequence[Directory], order: str = "<", is_big: bool = False) -> None:
    """Write a TIFF whose main chain is these directories."""
    start = order.replace("<", "II").replace(">", "MM").encode()
    out = bytearray(start + struct.pack(order + ("HHHQ" if is_big else "HI"), *((43, 8, 0, 0) if is_big else (42, 0))))
    link = len(out) - (8 if is_big else 4)
    for directory in directories:
        place, following = _append(out, directory, order, is_big)
        struct.pack_into(order + ("Q" if is_big else "I"), out, link, place)
        link = following
    path.write_bytes(out)


def _append(out: bytearray, directory: Directory, order: str, is_big: bool) -> tuple[int, int]:
    """Append segments, children and tags; return where the directory lies, and where the place of the next is to be written."""
    tags = dict(directory.tags)
    if directory.children:
        tags[330] = (18 if is_big else IFD, [_append(out, child, order, is_big)[0] for child in directory.children])
    offsets = []
    for segment in directory.segments:
        out += b"\0" * (len(out) % 2)
        offsets.append(len(out) if segment else 0)
        out += segment
    codes = (324, 325) if 322 in tags else (273, 279)
    made = {
        codes[0]: (LONG8 if is_big else LONG, offsets),
        codes[1]: (LONG, [len(segment) for segment in directory.segments]),
    }
    tags = {code: tag for code, tag in {**made, **tags}.items() if tag != NO_TAG}
    entries = [_entry(out, code, *tags[code], order, is_big) for code in sorted(tags)]
    out += b"\0" * (len(out) % 2)
    place = len(out)
    out += struct.pack(order + ("Q" if is_big else "H"), len(entries)) + b"".join(entries)
    following = len(out)
    out += bytes(8 if is_big else 4)
    return place, following


def _entry(out: bytearray, code: int, kind: int, values: Sequence[int], order: str, is_big: bool) -> bytes:
    content = struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
    size = 8 if is_big else 4
    count = len(values) // 2 if kind == RATIONAL else len(values)
    if len(content) > size:
        out += b"\0" * (len(out) % 2)
        content, place = struct.pack(order + ("Q" if is_big else "I"), len(out)), content
        out += place
    return struct.pack(order + ("HHQ" if is_big else "HHI"), code, kind, count) + content.ljust(size, b"\0")
