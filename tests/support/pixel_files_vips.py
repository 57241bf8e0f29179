"""Files of the pixel oracle that libvips writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.pixel_files import (
    GREY,
    RGB,
    SIZE,
    Combination,
    Pixels,
    noise,
    over,
    picture,
    planes,
    ramp_alpha,
    rgb_of_cmyk,
)

TILES = {"tile": True, "tile_width": 32, "tile_height": 16}
LAYOUTS: dict[str, dict[str, Any]] = {"strips": {}, "tiles 16 × 32": TILES}


def combinations() -> Iterator[Combination]:
    """Yield all that libvips writes."""
    yield from _lossless()
    yield from _numbers()
    yield from _few_bits()
    yield from _lossy()
    yield from _colours()
    yield from _pyramids()


def _write(image: Pixels, interpretation: str, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import pyvips

        wrapped = pyvips.Image.new_from_array(np.ascontiguousarray(image)).copy(interpretation=interpretation)
        wrapped.tiffsave(str(path), **options)

    return write


def _lossless() -> Iterator[Combination]:
    rgb, grey = noise(*SIZE, 3), noise(*SIZE, dtype="uint16")
    for compression in ("none", "deflate", "lzw", "packbits"):
        for predictor in ("none", "horizontal") if compression in ("deflate", "lzw") else ("none",):
            for layout, options in LAYOUTS.items():
                options = {**options, "compression": compression, "predictor": predictor}
                words = compression + (" predictor 2" if predictor == "horizontal" else "")
                yield Combination(
                    "libvips",
                    "TIFF",
                    words,
                    RGB,
                    "uint8",
                    layout,
                    _write(rgb, "srgb", **options),
                    (planes(rgb),),
                    "tifffile",
                )
                yield Combination(
                    "libvips", "TIFF", words, GREY, "uint16", layout, _write(grey, "grey16", **options), (planes(grey),),
                    "Pillow",
                )  # fmt: skip
    yield Combination(
        "libvips", "TIFF", "webp lossless", RGB, "uint8", "tiles 16 × 32",
        _write(rgb, "srgb", compression="webp", lossless=True, **TILES), (planes(rgb),), "tifffile",
    )  # fmt: skip
    yield Combination(
        "libvips", "BigTIFF", "deflate", RGB, "uint8", "tiles 16 × 32",
        _write(rgb, "srgb", compression="deflate", bigtiff=True, **TILES), (planes(rgb),), "Pillow",
    )  # fmt: skip


def _numbers() -> Iterator[Combination]:
    for dtype in ("int8", "int16", "int32", "uint32", "float32", "float64"):
        image = noise(*SIZE, dtype=dtype)
        for predictor in ("none", "float" if dtype.startswith("float") else "horizontal"):
            words = "deflate" + {"none": "", "float": " predictor 3", "horizontal": " predictor 2"}[predictor]
            write = _write(image, "b-w", compression="deflate", predictor=predictor, **TILES)
            yield Combination(
                "libvips", "TIFF", words, GREY, dtype, "tiles 16 × 32", write, (planes(image),), "tifffile"
            )
    rgb = noise(*SIZE, 3, dtype="uint16")
    yield Combination(
        "libvips",
        "TIFF",
        "lzw",
        RGB,
        "uint16",
        "strips",
        _write(rgb, "rgb16", compression="lzw"),
        (planes(rgb),),
        "GDAL",
    )
    bands = noise(*SIZE, 5)
    write = _write(bands, "b-w", compression="lzw")  # libvips calls all bands alpha but the first
    yield Combination(
        "libvips",
        "TIFF",
        "lzw",
        "BlackIsZero, alphas",
        "uint8",
        "strips, 5 samples",
        write,
        (planes(bands),),
        "tifffile",
    )
    rgb = picture()
    truth = np.concatenate([planes(over(255, rgb, ramp_alpha())), planes(bands[..., 4])])
    write = _write(np.dstack([rgb, ramp_alpha(), bands[..., 4]]), "srgb", compression="lzw")
    yield Combination("libvips", "TIFF", "lzw", "RGB, alphas", "uint8", "strips, 5 samples", write, (truth,), "", 2)


def _few_bits() -> Iterator[Combination]:
    for bits in (1, 2, 4):
        codes = noise(SIZE[0], 84, high=2**bits - 1)  # libvips loses the last pixel of odd rows
        image = (codes.astype(int) * 255 // (2**bits - 1)).astype(np.uint8)
        for compression in ("none", "deflate", *(("ccittfax4",) if bits == 1 else ())):
            for layout, options in LAYOUTS.items():
                write = _write(image, "b-w", compression=compression, bitdepth=bits, predictor="none", **options)
                yield Combination(
                    "libvips", "TIFF", compression, GREY, f"{bits} bit", layout, write, (planes(codes),), "tifffile"
                )
        if bits == 1:
            write = _write(image, "b-w", bitdepth=1, miniswhite=True, compression="packbits")
            yield Combination(
                "libvips", "TIFF", "packbits", "WhiteIsZero", "1 bit", "strips", write, (planes(1 - codes),), "GDAL",
            )  # fmt: skip


def _lossy() -> Iterator[Combination]:
    rgb, grey = picture(), picture(1)[..., 0]
    for layout, options in LAYOUTS.items():
        for quality, words in ((75, "YCbCr 4:2:0"), (90, "YCbCr 4:4:4")):
            write = _write(rgb, "srgb", compression="jpeg", Q=quality, **options)
            yield Combination("libvips", "TIFF", "JPEG", words, "uint8", layout, write, (planes(rgb),), "Pillow", 45, 2)
        write = _write(grey, "b-w", compression="jpeg", Q=90, **options)
        yield Combination("libvips", "TIFF", "JPEG", GREY, "uint8", layout, write, (planes(grey),), "Pillow", 10, 2)
    write = _write(rgb, "srgb", compression="webp", Q=90, **TILES)
    yield Combination(
        "libvips", "TIFF", "webp", RGB, "uint8", "tiles 16 × 32", write, (planes(rgb),), "tifffile", 30, 2
    )


def _colours() -> Iterator[Combination]:
    cmyk = noise(*SIZE, 4)
    for compression in ("none", "lzw"):
        yield Combination(
            "libvips", "TIFF", compression, "CMYK", "uint8", "strips", _write(cmyk, "cmyk", compression=compression),
            (planes(rgb_of_cmyk(cmyk)),), "Pillow", 1, 1,
        )  # fmt: skip
    rgb = picture()
    for premultiply, words in ((False, "unassociated alpha"), (True, "associated alpha")):
        rgba = np.dstack([rgb, ramp_alpha()])
        write = _write(rgba, "srgb", compression="deflate", premultiply=premultiply, **TILES)
        yield Combination(
            "libvips", "TIFF", "deflate", f"RGB with {words}", "uint8", "tiles 16 × 32", write,
            (planes(over(255, rgb, ramp_alpha())),), "libtiff", 2, 2,
        )  # fmt: skip


def _pyramids() -> Iterator[Combination]:
    image = noise(200, 330, 3)
    levels = tuple(planes(image[: 200 // step * step : step, : 330 // step * step : step]) for step in (1, 2))
    for subifd, words in ((True, "SubIFDs"), (False, "pages")):
        for compression in ("deflate", "lzw"):
            write = _write(
                image, "srgb", compression=compression, pyramid=True, subifd=subifd, region_shrink="nearest", tile=True,
                tile_width=64, tile_height=64,
            )  # fmt: skip
            yield Combination(
                "libvips",
                "TIFF",
                compression,
                RGB,
                "uint8",
                f"tiles 64 × 64, levels as {words}",
                write,
                levels,
                "tifffile",
            )
