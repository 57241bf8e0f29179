"""Files of the pixel oracle that GDAL writes, by the rasterio package."""

from __future__ import annotations

import warnings
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

TILES = {"TILED": "YES", "BLOCKXSIZE": 32, "BLOCKYSIZE": 16}
STRIPS = {"BLOCKYSIZE": 7}
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips of 7, interleaved": {**STRIPS, "INTERLEAVE": "PIXEL"},
    "strips of 7, separate": {**STRIPS, "INTERLEAVE": "BAND"},
    "tiles 16 × 32, interleaved": {**TILES, "INTERLEAVE": "PIXEL"},
    "tiles 16 × 32, separate": {**TILES, "INTERLEAVE": "BAND"},
}


def combinations() -> Iterator[Combination]:
    """Yield all that GDAL writes."""
    yield from _lossless()
    yield from _numbers()
    yield from _odd_bits()
    yield from _lossy()
    yield from _colours()
    yield from _levels()
    yield from _sparse()


def _write(bands: Pixels, factors: tuple[int, ...] = (), **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import rasterio
        from rasterio.enums import Resampling

        count, height, width = bands.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(
                path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **options
            ) as dataset:
                dataset.write(bands)
            if factors:
                with rasterio.open(path, "r+") as dataset:
                    dataset.build_overviews(list(factors), Resampling.nearest)

    return write


def _lossless() -> Iterator[Combination]:
    rgb = noise(3, *SIZE)
    for compression in ("NONE", "LZW", "DEFLATE", "ZSTD", "PACKBITS", "LZMA"):
        for layout, options in LAYOUTS.items():
            write = _write(rgb, COMPRESS=compression, PHOTOMETRIC="RGB", **options)
            yield Combination("GDAL", "TIFF", compression, RGB, "uint8", layout, write, (rgb,), "tifffile")
    write = _write(rgb, COMPRESS="ZSTD", PREDICTOR=2, PHOTOMETRIC="RGB", BIGTIFF="YES", ENDIANNESS="BIG", **TILES)
    yield Combination(
        "GDAL", "BigTIFF", "ZSTD predictor 2", RGB, "big-endian uint8", "tiles 16 × 32", write, (rgb,), "tifffile"
    )
    write = _write(rgb, COMPRESS="WEBP", WEBP_LOSSLESS="YES", PHOTOMETRIC="RGB", INTERLEAVE="PIXEL", **TILES)
    yield Combination("GDAL", "TIFF", "WEBP lossless", RGB, "uint8", "tiles 16 × 32", write, (rgb,), "tifffile")


def _numbers() -> Iterator[Combination]:
    for dtype in ("int8", "uint16", "int16", "int32", "uint32", "float32", "float64", "int64", "uint64"):
        image = noise(1, *SIZE, dtype=dtype)
        predictor = 3 if dtype.startswith("float") else 2
        for endian in ("LITTLE", "BIG"):
            depth = ("big-endian " if endian == "BIG" else "") + dtype
            write = _write(image, COMPRESS="LZW", PREDICTOR=predictor, ENDIANNESS=endian, **STRIPS)
            yield Combination(
                "GDAL", "TIFF", f"LZW predictor {predictor}", GREY, depth, "strips of 7", write, (image,), "tifffile"
            )
    for dtype in ("uint8", "int16", "float32", "uint32"):
        image = noise(1, *SIZE, dtype=dtype)
        for compression in ("LERC", "LERC_DEFLATE", "LERC_ZSTD"):
            write = _write(image, COMPRESS=compression, MAX_Z_ERROR=0, **TILES)
            yield Combination("GDAL", "TIFF", compression, GREY, dtype, "tiles 16 × 32", write, (image,), "tifffile")
    five = noise(5, *SIZE, dtype="uint16")
    for layout, options in LAYOUTS.items():
        write = _write(five, COMPRESS="DEFLATE", PHOTOMETRIC="MINISBLACK", **options)
        yield Combination("GDAL", "TIFF", "DEFLATE", GREY, "uint16", f"{layout}, 5 samples", write, (five,), "tifffile")
    four = noise(4, *SIZE)
    write = _write(four, COMPRESS="DEFLATE", PHOTOMETRIC="RGB", ALPHA="NO", INTERLEAVE="PIXEL", **TILES)
    yield Combination(
        "GDAL",
        "TIFF",
        "DEFLATE",
        RGB,
        "uint8",
        "tiles 16 × 32, a sample more, of no meaning",
        write,
        (four,),
        "tifffile",
    )


def _odd_bits() -> Iterator[Combination]:
    for bits in (1, 2, 4, 7, 10, 12, 14, 20, 24, 31):
        dtype = "uint8" if bits <= 8 else "uint16" if bits <= 16 else "uint32"
        image = noise(1, *SIZE, dtype=dtype, high=2**bits - 1)
        for layout, options in (("strips of 7", STRIPS), ("tiles 16 × 32", TILES)):
            write = _write(image, COMPRESS="DEFLATE", NBITS=bits, **options)
            yield Combination("GDAL", "TIFF", "DEFLATE", GREY, f"{bits} bit", layout, write, (image,), "tifffile")
    rgb = noise(3, *SIZE, dtype="uint16", high=4095)
    write = _write(rgb, COMPRESS="NONE", NBITS=12, PHOTOMETRIC="RGB", INTERLEAVE="PIXEL", **STRIPS)
    yield Combination("GDAL", "TIFF", "NONE", RGB, "12 bit", "strips of 7", write, (rgb,), "tifffile")
    half = noise(1, *SIZE, dtype="float16").astype("float32")
    write = _write(half, COMPRESS="DEFLATE", NBITS=16, **TILES)
    yield Combination("GDAL", "TIFF", "DEFLATE", GREY, "float16", "tiles 16 × 32", write, (half,), "tifffile")


def _lossy() -> Iterator[Combination]:
    rgb = planes(picture())
    for layout, options in (("strips of 16", {"BLOCKYSIZE": 16}), ("tiles 16 × 32", TILES)):
        for photometric, words in (("YCBCR", "YCbCr 4:2:0"), ("RGB", RGB)):
            write = _write(
                rgb, COMPRESS="JPEG", PHOTOMETRIC=photometric, JPEG_QUALITY=92, INTERLEAVE="PIXEL", **options
            )
            yield Combination("GDAL", "TIFF", "JPEG", words, "uint8", layout, write, (rgb,), "Pillow", 25, 2)
        write = _write(rgb, COMPRESS="JPEG", PHOTOMETRIC="RGB", JPEG_QUALITY=92, INTERLEAVE="BAND", **options)
        yield Combination("GDAL", "TIFF", "JPEG", RGB, "uint8", f"{layout}, separate", write, (rgb,), "libtiff", 10, 2)
        write = _write(rgb[:1], COMPRESS="JPEG", JPEG_QUALITY=92, **options)
        yield Combination("GDAL", "TIFF", "JPEG", GREY, "uint8", layout, write, (rgb[:1],), "tifffile", 10, 2)
    write = _write(rgb, COMPRESS="WEBP", WEBP_LEVEL=90, PHOTOMETRIC="RGB", INTERLEAVE="PIXEL", **TILES)
    yield Combination("GDAL", "TIFF", "WEBP", RGB, "uint8", "tiles 16 × 32", write, (rgb,), "tifffile", 45, 2)
    image = noise(1, *SIZE, dtype="float32")
    write = _write(image, COMPRESS="LERC", MAX_Z_ERROR=0.5, **TILES)
    yield Combination(
        "GDAL", "TIFF", "LERC within 0.5", GREY, "float32", "tiles 16 × 32", write, (image,), "tifffile", 0.5, 0.01
    )


def _colours() -> Iterator[Combination]:
    grey = noise(1, *SIZE)
    for dtype in ("uint8", "uint16"):
        grey = noise(1, *SIZE, dtype=dtype)
        write = _write(grey, COMPRESS="DEFLATE", PHOTOMETRIC="MINISWHITE", **TILES)
        yield Combination(
            "GDAL", "TIFF", "DEFLATE", "WhiteIsZero", dtype, "tiles 16 × 32", write, (grey,), "tifffile",
        )  # fmt: skip
    cmyk = noise(4, *SIZE)
    for layout, options in LAYOUTS.items():
        write = _write(cmyk, COMPRESS="ZSTD" if "tiles" in layout else "NONE", PHOTOMETRIC="CMYK", **options)
        truth = planes(rgb_of_cmyk(np.moveaxis(cmyk, 0, 2)))
        yield Combination(
            "GDAL",
            "TIFF",
            "ZSTD" if "tiles" in layout else "NONE",
            "CMYK",
            "uint8",
            layout,
            write,
            (truth,),
            "libtiff",
            2,
            2,
        )
    rgb = picture()
    straight, premultiplied = (
        np.dstack([rgb, ramp_alpha()]),
        np.dstack([(rgb * (ramp_alpha()[..., None] / 255)).round().astype(np.uint8), ramp_alpha()]),
    )
    truth = planes(over(255, rgb, ramp_alpha()))
    for image, alpha, words in (
        (straight, "NON-PREMULTIPLIED", "unassociated"),
        (premultiplied, "PREMULTIPLIED", "associated"),
    ):
        for layout, options in LAYOUTS.items():
            write = _write(planes(image), COMPRESS="LZW", PHOTOMETRIC="RGB", ALPHA=alpha, **options)
            yield Combination(
                "GDAL", "TIFF", "LZW", f"RGB with {words} alpha", "uint8", layout, write, (truth,), "libtiff", 2, 2
            )


def _levels() -> Iterator[Combination]:
    bands = noise(3, 240, 320)
    for compression in ("DEFLATE", "LZW"):
        for interleave in ("PIXEL", "BAND"):
            write = _write(
                bands, (2, 4), COMPRESS=compression, PHOTOMETRIC="RGB", TILED="YES", BLOCKXSIZE=64, BLOCKYSIZE=64,
                INTERLEAVE=interleave,
            )  # fmt: skip
            levels = (bands, bands[:, ::2, ::2], bands[:, ::4, ::4])
            yield Combination(
                "GDAL", "TIFF", compression, RGB, "uint8", f"tiles 64 × 64, {interleave.lower()}, overviews", write, levels,
                "tifffile",
            )  # fmt: skip


def _sparse() -> Iterator[Combination]:
    """Yield files in which most tiles were never written."""
    for photometric, words, count, nodata, fill in (
        ("RGB", RGB, 3, None, 255), ("MINISBLACK", GREY, 1, None, 0), ("MINISBLACK", GREY, 1, 7, 7),
    ):  # fmt: skip
        truth = np.full((count, *SIZE), fill, np.uint8)
        truth[:, 16:32, 32:64] = noise(count, 16, 32, high=200)

        def write(
            path: Path, truth: Pixels = truth, photometric: str = photometric, nodata: int | None = nodata
        ) -> None:
            import rasterio
            from rasterio.windows import Window

            count, height, width = truth.shape
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(
                    path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8", nodata=nodata,
                    PHOTOMETRIC=photometric, INTERLEAVE="PIXEL", COMPRESS="DEFLATE", SPARSE_OK="TRUE", **TILES,
                ) as dataset:  # fmt: skip
                    dataset.write(truth[:, 16:32, 32:64], window=Window(32, 16, 32, 16))

        layout = "tiles 16 × 32, sparse" + ("" if nodata is None else f", no-data value {nodata}")
        decoder = "" if words == RGB else "GDAL"  # which takes what isn't there for black
        yield Combination("GDAL", "TIFF", "DEFLATE", words, "uint8", layout, write, (truth,), decoder)
