"""Files of the pixel oracle by libtiff's own programs: `raw2tiff` from plain numbers, `tiffcp` and `tiffset` from there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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

_RAW_TYPES = {
    "uint8": "byte", "uint16": "short", "uint32": "long", "int8": "sbyte", "int16": "sshort", "int32": "slong",
    "float32": "float", "float64": "double",
}  # fmt: skip
LAYOUTS = {
    "strips of 7": ("-s", "-r", "7"),
    "tiles 16 × 32": ("-t", "-w", "32", "-l", "16"),
    "strips of 7, separate": ("-s", "-r", "7", "-p", "separate"),
    "tiles 16 × 32, separate": ("-t", "-w", "32", "-l", "16", "-p", "separate"),
}
CODECS = {
    "none": "none", "lzw:2": "LZW predictor 2", "zip:2": "deflate predictor 2", "packbits": "packbits",
    "zstd:2": "zstd predictor 2", "lzma": "LZMA",
}  # fmt: skip
BIT_CODECS = {
    "none": "none", "lzw": "LZW", "packbits": "packbits", "g3": "CCITT group 3", "g3:2d": "CCITT group 3 in 2D",
    "g4": "CCITT group 4",
}  # fmt: skip
NEW_SUBFILE_TYPE, EXTRA_SAMPLES = "254", "338"


def combinations() -> Iterator[Combination]:
    """Yield all that libtiff's programs write."""
    yield from _lossless()
    yield from _numbers()
    yield from _bit_orders()
    yield from _lossy()
    yield from _colours()
    yield from _pages()


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _raw(image: Pixels, photometric: str, path: Path) -> None:
    """Make a TIFF of plain (y, x) or (y, x, c) numbers."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.ascontiguousarray(image).tobytes())
    height, width, *samples = image.shape
    _run(
        "raw2tiff", "-w", str(width), "-l", str(height), "-b", str((*samples, 1)[0]), "-d", _RAW_TYPES[image.dtype.name],
        "-c", "none", "-p", photometric, raw, path,
    )  # fmt: skip
    raw.unlink()


def _write(
    image: Pixels, photometric: str, options: tuple[str, ...], tags: tuple[tuple[str, ...], ...] = ()
) -> Callable[[Path], object]:
    """Return a function that writes by raw2tiff, sets tags, then copies by tiffcp with these options."""

    def write(path: Path) -> None:
        source = path.with_suffix(".plain.tif")
        _raw(image, photometric, source)
        for tag in tags:
            _run("tiffset", "-s", *tag, source)
        _run("tiffcp", *options, source, path)

    return write


def _lossless() -> Iterator[Combination]:
    rgb = noise(*SIZE, 3)
    for code, words in CODECS.items():
        for layout, options in LAYOUTS.items():
            write = _write(rgb, "rgb", ("-c", code, *options))
            yield Combination("libtiff", "TIFF", words, RGB, "uint8", layout, write, (planes(rgb),), "tifffile")
    for flags, kind, depth in (
        (("-8",), "BigTIFF", "uint8"),
        (("-B",), "TIFF", "big-endian uint8"),
        (("-8", "-B"), "BigTIFF", "big-endian uint8"),
    ):
        write = _write(rgb, "rgb", (*flags, "-c", "zip", *LAYOUTS["tiles 16 × 32"]))
        yield Combination("libtiff", kind, "deflate", RGB, depth, "tiles 16 × 32", write, (planes(rgb),), "GDAL")
    write = _write(rgb, "rgb", ("-c", "lerc:0:s2", *LAYOUTS["tiles 16 × 32"]))
    yield Combination("libtiff", "TIFF", "LERC zstd", RGB, "uint8", "tiles 16 × 32", write, (planes(rgb),), "tifffile")


def _numbers() -> Iterator[Combination]:
    for dtype in ("uint16", "int16", "uint32", "int32", "float32", "float64"):
        image = noise(*SIZE, dtype=dtype)
        for flag, order in (("-L", ""), ("-B", "big-endian ")):
            # tiffcp 4.5.0 writes wrong numbers as big-endian floats with predictor 3.
            predictor = 2 if "float" not in dtype else 1 if order else 3
            write = _write(image, "minisblack", (flag, "-c", f"zip:{predictor}", *LAYOUTS["tiles 16 × 32"]))
            yield Combination(
                "libtiff", "TIFF", f"deflate predictor {predictor}", GREY, order + dtype, "tiles 16 × 32", write,
                (planes(image),),
                "tifffile",
            )  # fmt: skip
    image = noise(*SIZE, dtype="int8")
    write = _write(image, "minisblack", ("-c", "none", "-r", "1000"))
    yield Combination("libtiff", "TIFF", "none", GREY, "int8", "one strip", write, (planes(image),), "tifffile")


def _bit_orders() -> Iterator[Combination]:
    bits = noise(*SIZE, dtype="bool")
    for code, words in BIT_CODECS.items():
        for order in ("msb2lsb", "lsb2msb"):

            def write(path: Path, code: str = code, order: str = order) -> None:
                source = path.with_suffix(".pbm")
                source.write_bytes(b"P4 %d %d\n" % SIZE[::-1] + np.packbits(~bits, axis=1).tobytes())
                plain = path.with_suffix(".plain.tif")
                _run("ppm2tiff", "-c", "none", source, plain)
                _run("tiffcp", "-c", code, "-f", order, "-s", "-r", "7", plain, path)

            yield Combination(
                "libtiff", "TIFF", words, "WhiteIsZero", f"1 bit, {order}", "strips of 7", write,
                (planes((~bits).astype(np.uint8)),), "GDAL",
            )  # fmt: skip


def _lossy() -> Iterator[Combination]:
    rgb, grey = picture(), picture(1)[..., 0]
    for layout in ("strips of 16", "tiles 16 × 32"):
        options = LAYOUTS.get(layout, ("-s", "-r", "16"))
        for code, words in (("jpeg:92", "YCbCr 4:2:0"), ("jpeg:r:92", RGB)):
            write = _write(rgb, "rgb", ("-c", code, *options))
            yield Combination(
                "libtiff", "TIFF", "JPEG", words, "uint8", layout, write, (planes(rgb),), "libvips", 30, 2
            )
        write = _write(grey, "minisblack", ("-c", "jpeg:92", *options))
        yield Combination("libtiff", "TIFF", "JPEG", GREY, "uint8", layout, write, (planes(grey),), "libvips", 10, 2)
        write = _write(rgb, "rgb", ("-c", "jpeg:r:92", "-p", "separate", *options))
        yield Combination(
            "libtiff", "TIFF", "JPEG", RGB, "uint8", f"{layout}, separate", write, (planes(rgb),), "GDAL", 10, 2
        )


def _colours() -> Iterator[Combination]:
    grey, cmyk = noise(*SIZE), noise(*SIZE, 4)
    for code, words in CODECS.items():
        write = _write(grey, "miniswhite", ("-c", code, *LAYOUTS["tiles 16 × 32"]))
        truth = (planes(grey),)
        yield Combination("libtiff", "TIFF", words, "WhiteIsZero", "uint8", "tiles 16 × 32", write, truth, "GDAL")
        for layout in ("tiles 16 × 32", "strips of 7, separate"):
            write = _write(cmyk, "cmyk", ("-c", code, *LAYOUTS[layout]))
            truth = (planes(rgb_of_cmyk(cmyk)),)
            yield Combination("libtiff", "TIFF", words, "CMYK", "uint8", layout, write, truth, "libtiff", 2, 2)
    smooth, alpha = picture(), ramp_alpha()
    premultiplied = (smooth * (alpha[..., None] / 255)).round().astype(np.uint8)
    truth = (planes(over(255, smooth, alpha)),)
    for image, kind, words in ((smooth, "2", "unassociated alpha"), (premultiplied, "1", "associated alpha")):
        for layout in ("strips of 7", "tiles 16 × 32, separate"):
            write = _write(
                np.dstack([image, alpha]), "rgb", ("-c", "zip", *LAYOUTS[layout]), ((EXTRA_SAMPLES, "1", kind),)
            )
            yield Combination(
                "libtiff", "TIFF", "deflate", f"RGB with {words}", "uint8", layout, write, truth, "libtiff", 2, 2
            )


def _pages() -> Iterator[Combination]:
    image = noise(200, 330, 3)
    levels = [image, image[::2, ::2], image[::4, ::4]]
    for code, words in (("none", "none"), ("lzw", "LZW"), ("zip", "deflate")):

        def write(path: Path, code: str = code) -> None:
            sources = []
            for number, level in enumerate(levels):
                sources.append(path.with_suffix(f".{number}.tif"))
                _raw(level, "rgb", sources[-1])
                if number:
                    _run("tiffset", "-s", NEW_SUBFILE_TYPE, "1", sources[-1])
            _run("tiffcp", "-c", code, "-t", "-w", "64", "-l", "64", *sources, path)

        yield Combination(
            "libtiff", "TIFF", words, RGB, "uint8", "tiles 64 × 64, levels as pages", write,
            tuple(planes(level) for level in levels),
            "tifffile",
        )  # fmt: skip
