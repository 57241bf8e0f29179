"""Files of the pixel oracle that are written by hand: packings of bits, layouts and tags that no program writes today."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tests.support.pixel_files import GREY, RGB, SIZE, Combination, Pixels, noise, planes
from tests.support.tiff_by_hand import (
    LONG,
    NO_TAG,
    SHORT,
    Directory,
    Shape,
    Tags,
    make_directory,
    pack,
    write_directories,
)

STRIPS, TILES = Shape(rows=7), Shape(tile=(16, 32))
SEPARATE_STRIPS, SEPARATE_TILES = Shape(rows=7, is_separate=True), Shape(tile=(16, 32), is_separate=True)
LAYOUTS = {
    "strips of 7": STRIPS, "tiles 16 × 32": TILES, "strips of 7, separate": SEPARATE_STRIPS,
    "tiles 16 × 32, separate": SEPARATE_TILES,
}  # fmt: skip
HAND = "by hand"


def combinations() -> Iterator[Combination]:
    """Yield all that is about numbers and layouts; colours and codecs are in files of their own."""
    yield from _bits()
    yield from _strips()
    yield from _tiles()
    yield from _samples()
    yield from _levels()


def make(
    image: NDArray[Any], depth: str, layout: str, shape: Shape, *, photometric: int = 1, colours: str = GREY,
    truth: Pixels | None = None, compression: str = "none", decoder: str = "", order: str = "<", is_big: bool = False,
    refusal: Sequence[str] = (), tolerance: float = 0, agreement: float = 0, **options: Any,
) -> Combination:  # fmt: skip
    """Make the row of a file with one directory, which has to be refused where words for that are given.

    Args:
        image: Samples as they are stored.
        depth: In words.
        layout: In words.
        shape: The layout.
        photometric: PhotometricInterpretation.
        colours: The same in words.
        truth: (c, y, x) that a reader has to return, if not the image itself.
        compression: In words.
        decoder: What reads the file too.
        order: Byte order.
        is_big: Whether it is a BigTIFF.
        refusal: Words of which the refusal must have one.
        tolerance: As in `Combination`.
        agreement: As in `Combination`.
        options: As `make_directory` takes them.
    """

    def write(path: Path) -> None:
        directory = make_directory(image, photometric, shape, order=order, **options)
        write_directories(path, [directory], order, is_big)

    levels = () if refusal else (planes(image) if truth is None else truth,)
    file_format = "BigTIFF" if is_big else "TIFF"
    return Combination(
        HAND,
        file_format,
        compression,
        colours,
        depth,
        layout,
        write,
        levels,
        decoder,
        tolerance,
        agreement,
        tuple(refusal),
    )


def _bits() -> Iterator[Combination]:
    for bits in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15):
        dtype = "uint8" if bits <= 8 else "uint16"
        for layout in ("strips of 7", "tiles 16 × 32"):
            image = noise(*SIZE, dtype=dtype, high=2**bits - 1)
            yield make(image, f"{bits} bit", layout, LAYOUTS[layout], bits=bits, decoder="GDAL")
    for bits in (4, 10, 12, 14):
        rgb = noise(*SIZE, 3, dtype="uint8" if bits <= 8 else "uint16", high=2**bits - 1)
        for layout, shape in LAYOUTS.items():
            yield make(rgb, f"{bits} bit", layout, shape, bits=bits, photometric=2, colours=RGB, decoder="GDAL")
    for bits in (4, 12):
        image = noise(*SIZE, dtype="uint8" if bits <= 8 else "uint16", high=2**bits - 1)
        yield make(
            image, f"{bits} bit", "strips of 7", STRIPS, bits=bits, photometric=0, colours="WhiteIsZero",
            decoder="tifffile",
        )  # fmt: skip
    image = noise(*SIZE, dtype="uint8")
    reverse = lambda segment: imagecodecs.bitorder_encode(pack(segment, 8, "<"))  # noqa: E731
    yield make(
        image, "uint8, FillOrder 2", "strips of 7", STRIPS, encode=reverse, tags={266: (SHORT, [2])}, decoder="GDAL"
    )
    for dtype in ("float16", "float32", "float64", "int64", "uint64", "int8", "uint16"):
        for order in "<>":
            image = noise(*SIZE, dtype=dtype)
            depth = ("big-endian " if order == ">" else "") + dtype
            yield make(image, depth, "tiles 16 × 32", TILES, order=order, is_big=dtype.endswith("64"), decoder="GDAL")
    rgb565 = noise(*SIZE, 3, high=31)
    yield make(
        rgb565, "5, 6 and 5 bit", "strips of 7", STRIPS, bits=[5, 6, 5], photometric=2, colours=RGB, refusal=("bits",),
        encode=lambda segment: pack(segment, 8, "<"),
    )  # fmt: skip
    for code, words in ((5, "complex int"), (6, "complex float")):
        yield make(
            noise(*SIZE, dtype="uint32"), words, "strips of 7", STRIPS, tags={339: (SHORT, [code])}, refusal=("complex", "type"),
        )  # fmt: skip
    undefined = noise(*SIZE, dtype="uint16")
    yield make(undefined, "undefined, 16 bit", "strips of 7", STRIPS, tags={339: (SHORT, [4])}, decoder="GDAL")


def _strips() -> Iterator[Combination]:
    rgb, grey = noise(*SIZE, 3), noise(*SIZE)
    whole, height = Shape(rows=SIZE[0]), SIZE[0]
    for words, tags in {
        "RowsPerStrip missing": {278: NO_TAG}, "RowsPerStrip 2³² - 1": {278: (LONG, [2**32 - 1])},
        "RowsPerStrip larger than the image": {278: (LONG, [height + 100])}, "RowsPerStrip of 16 bit": {278: (SHORT, [height])},
        "counts missing": {279: NO_TAG}, "counts of 16 bit": {279: (SHORT, [rgb.size])},
        "SampleFormat missing": {339: NO_TAG}, "PlanarConfiguration missing": {284: NO_TAG},
        "counts too large": {279: (LONG, [rgb.size + 5])}, "BitsPerSample given once": {258: (SHORT, [8])},
    }.items():  # fmt: skip
        yield make(
            rgb, "uint8", f"one strip, {words}", whole, photometric=2, colours=RGB, tags=tags, decoder="tifffile"
        )
    for compression, code, encode in (("LZW", 5, imagecodecs.lzw_encode), ("deflate", 8, imagecodecs.zlib_encode)):
        for words, tags in {"missing": {278: NO_TAG}, "2³² - 1": {278: (LONG, [2**32 - 1])}}.items():
            yield make(
                grey, "uint8", f"one strip, RowsPerStrip {words}", whole, compression=compression, decoder="Pillow",
                encode=lambda segment, encode=encode: encode(segment.tobytes()), tags={**tags, 259: (SHORT, [code])},
            )  # fmt: skip
    for rows in (1, 60, 61):
        yield make(grey, "uint8", f"strips of {rows}", Shape(rows=rows), decoder="Pillow")
    padded = np.pad(rgb, ((0, -height % 16), (0, 0), (0, 0)))
    yield make(
        padded, "uint8", "strips of 16, the last one padded", Shape(rows=16), photometric=2, colours=RGB, truth=planes(rgb),
        compression="deflate", encode=lambda segment: imagecodecs.zlib_encode(segment.tobytes()),
        tags={257: (LONG, [height]), 259: (SHORT, [8])}, decoder="Pillow",
    )  # fmt: skip


def _tiles() -> Iterator[Combination]:
    rgb = noise(*SIZE, 3)
    for tile in ((20, 12), (16, 256), (512, 512), (1, 83), (61, 1)):
        layout = f"tiles {tile[0]} × {tile[1]}"
        yield make(rgb, "uint8", layout, Shape(tile=tile), photometric=2, colours=RGB, decoder="tifffile")
    for order in "<>":
        wide = noise(*SIZE, 3, dtype="uint16")
        for layout in ("tiles 16 × 32", "tiles 16 × 32, separate"):
            yield make(
                wide, ("big-endian " if order == ">" else "") + "uint16", layout, LAYOUTS[layout], photometric=2, colours=RGB,
                compression="deflate predictor 2", order=order, encode=lambda segment, order=order: _predicted(segment, order),
                tags={259: (SHORT, [8]), 317: (SHORT, [2])}, decoder="GDAL",
            )  # fmt: skip


def _predicted(segment: NDArray[Any], order: str) -> bytes:
    """Encode differences of neighbours in a row (TIFF 6.0, section 14) with deflate."""
    differences = np.diff(segment, axis=1, prepend=np.zeros_like(segment[:, :1]))
    return imagecodecs.zlib_encode(pack(differences, segment.dtype.itemsize * 8, order))


def _samples() -> Iterator[Combination]:
    for samples in (2, 3, 4, 6):
        image = noise(*SIZE, samples)
        for layout, shape in LAYOUTS.items():
            tags: Tags = {338: (SHORT, [0] * (samples - 1))}
            yield make(image, "uint8", f"{layout}, {samples} samples", shape, tags=tags, decoder="tifffile")
    for extra in (1, 2, 3):
        image = noise(*SIZE, 3 + extra)
        tags = {338: (SHORT, [0] * extra)}
        words = f"strips of 7, {extra} samples of no meaning more"
        yield make(image, "uint8", words, STRIPS, photometric=2, colours=RGB, tags=tags, decoder="tifffile")


def _levels() -> Iterator[Combination]:
    for samples, photometric, colours in ((1, 1, GREY), (3, 2, RGB)):
        image = noise(200, 330, samples)
        levels = [image, image[::2, ::2], image[::4, ::4]]
        for order, is_big, place in itertools.product("<>", (False, True), ("SubIFDs", "pages")):

            def write(
                path: Path, levels: list[Pixels] = levels, photometric: int = photometric, order: str = order,
                is_big: bool = is_big, place: str = place,
            ) -> None:  # fmt: skip
                shape, smaller = Shape(tile=(64, 64)), {254: (LONG, [1])}
                main, *others = (
                    make_directory(level, photometric, shape, tags=smaller if number else {})
                    for number, level in enumerate(levels)
                )
                with_levels = Directory(main.tags, main.segments, others)
                write_directories(path, [with_levels] if place == "SubIFDs" else [main, *others], order, is_big)

            yield Combination(
                HAND, "BigTIFF" if is_big else "TIFF", "none", colours, ("big-endian " if order == ">" else "") + "uint8",
                f"tiles 64 × 64, levels as {place}", write, tuple(planes(level) for level in levels),
                "GDAL" if is_big else "Pillow",
            )  # fmt: skip
