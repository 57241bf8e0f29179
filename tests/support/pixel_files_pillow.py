"""Files of the pixel oracle that Pillow writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.pixel_files import (
    GREY,
    RGB,
    SIZE,
    Combination,
    blocky_picture,
    noise,
    over,
    picture,
    planes,
    ramp_alpha,
    rgb_of_cmyk,
    ycbcr_of,
)

COMPRESSIONS = {
    "none": None,
    "LZW": "tiff_lzw",
    "deflate": "tiff_adobe_deflate",
    "packbits": "packbits",
    "zstd": "zstd",
    "LZMA": "lzma",
}
ROWS_PER_STRIP = 278


def combinations() -> Iterator[Combination]:
    """Yield all that Pillow writes."""
    yield from _lossless()
    yield from _few_bits()
    yield from _numbers()
    yield from _lossy()
    yield from _colours()
    yield from _pages()


def _write(
    image: Image.Image, compression: str | None = None, rows: int | None = None, **options: Any
) -> Callable[[Path], object]:
    tags = {} if rows is None else {ROWS_PER_STRIP: rows}

    def write(path: Path) -> None:
        image.save(path, "TIFF", compression=compression, tiffinfo=tags, **options)

    return write


def _lossless() -> Iterator[Combination]:
    rgb, grey = noise(*SIZE, 3), noise(*SIZE)
    for words, compression in COMPRESSIONS.items():
        for rows in (None, 5):
            layout = "strips" if rows is None else f"strips of {rows}"
            if rows and compression is None:
                continue  # Pillow writes one strip
            write = _write(Image.fromarray(rgb), compression, rows)
            yield Combination("Pillow", "TIFF", words, RGB, "uint8", layout, write, (planes(rgb),), "GDAL")
            write = _write(Image.fromarray(grey), compression, rows)
            yield Combination("Pillow", "TIFF", words, GREY, "uint8", layout, write, (planes(grey),), "GDAL")
    write = _write(Image.fromarray(rgb), "tiff_lzw", big_tiff=True)
    yield Combination("Pillow", "BigTIFF", "LZW", RGB, "uint8", "strips", write, (planes(rgb),), "tifffile")


def _few_bits() -> Iterator[Combination]:
    bits = noise(*SIZE, dtype="bool")
    truth = (planes(bits.astype(np.uint8)),)
    for words, compression in {
        **COMPRESSIONS,
        "CCITT group 3": "group3",
        "CCITT group 4": "group4",
        "CCITT RLE": "tiff_ccitt",
    }.items():
        yield Combination(
            "Pillow",
            "TIFF",
            words,
            GREY,
            "1 bit",
            "strips",
            _write(Image.fromarray(bits), compression),
            truth,
            "libtiff in bits",
        )


def _numbers() -> Iterator[Combination]:
    for dtype, mode in (("uint16", "I;16"), (">u2", "I;16B"), ("int32", "I"), ("float32", "F")):
        image = noise(*SIZE, dtype=dtype)
        for words in ("none", "LZW", "deflate", "zstd"):
            if mode == "I;16B" and words != "none":
                continue
            made = Image.frombytes(mode, image.shape[::-1], image.astype(dtype).tobytes())
            depth = dtype.replace(">u2", "big-endian uint16")
            write = _write(made, COMPRESSIONS[words])
            yield Combination("Pillow", "TIFF", words, GREY, depth, "strips", write, (planes(image),), "tifffile")


def _lossy() -> Iterator[Combination]:
    rgb, grey = picture(), picture(1)[..., 0]
    write = _write(Image.fromarray(rgb), "jpeg", quality=92)
    yield Combination("Pillow", "TIFF", "JPEG", "YCbCr", "uint8", "strips", write, (planes(rgb),), "libtiff", 25, 2)
    write = _write(Image.fromarray(grey), "jpeg", quality=92)
    yield Combination("Pillow", "TIFF", "JPEG", GREY, "uint8", "strips", write, (planes(grey),), "libvips", 10, 2)


def _colours() -> Iterator[Combination]:
    rgb, cmyk = blocky_picture(), noise(*SIZE, 4)
    for words in ("none", "LZW", "deflate", "packbits", "zstd"):
        compression = COMPRESSIONS[words]
        write = _write(Image.frombytes("CMYK", SIZE[::-1], cmyk.tobytes()), compression)
        yield Combination(
            "Pillow", "TIFF", words, "CMYK", "uint8", "strips", write, (planes(rgb_of_cmyk(cmyk)),), "libtiff", 2, 2
        )
        write = _write(Image.frombytes("YCbCr", SIZE[::-1], ycbcr_of(rgb).tobytes()), compression)
        yield Combination(
            "Pillow",
            "TIFF",
            words,
            "YCbCr",
            "uint8",
            "strips",
            write,
            (planes(rgb),),
            "Pillow" if words == "none" else "libtiff",
            3,
            3,
        )
        codes, colours = noise(*SIZE, high=199), noise(256, 3)
        made = Image.fromarray(codes, "L")
        made.putpalette(colours.tobytes())
        write = _write(made, compression)
        yield Combination(
            "Pillow", "TIFF", words, "palette", "uint8", "strips", write, (planes(colours[codes]),), "libtiff"
        )
    smooth = picture()
    made = Image.fromarray(np.dstack([smooth, ramp_alpha()]))
    truth = (planes(over(255, smooth, ramp_alpha())),)
    for words in ("none", "LZW", "zstd"):
        write = _write(made, COMPRESSIONS[words])
        yield Combination(
            "Pillow", "TIFF", words, "RGB with unassociated alpha", "uint8", "strips", write, truth, "libtiff", 2, 2
        )
    grey = picture(1)[..., 0]
    write = _write(Image.fromarray(np.dstack([grey, ramp_alpha()]), "LA"), "tiff_lzw")
    truth = (planes(over(0, grey[..., None], ramp_alpha())),)
    yield Combination(
        "Pillow",
        "TIFF",
        "LZW",
        "BlackIsZero with unassociated alpha",
        "uint8",
        "strips",
        write,
        truth,
        "Pillow over black",
        2,
        2,
    )


def _pages() -> Iterator[Combination]:
    image = noise(200, 330, 3)
    levels = [image, image[::2, ::2], image[::4, ::4]]

    def write(path: Path) -> None:
        first, *others = (Image.fromarray(np.ascontiguousarray(level)) for level in levels)
        first.save(path, "TIFF", save_all=True, append_images=others, compression="tiff_lzw")

    yield Combination(
        "Pillow",
        "TIFF",
        "LZW",
        RGB,
        "uint8",
        "strips, levels as pages",
        write,
        tuple(planes(level) for level in levels),
        "libvips",
    )
