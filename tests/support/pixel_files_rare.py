"""Files of the pixel oracle of rarer kinds, by hand: levels whose colours are converted, odd predictors, odd JPEGs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tests.support.pixel_files import (
    GREY,
    RGB,
    SIZE,
    Combination,
    Pixels,
    blocky_picture,
    noise,
    over,
    picture,
    planes,
    ramp_alpha,
    rgb_of_cmyk,
    ycbcr_of,
)
from tests.support.pixel_files_by_hand import HAND, LAYOUTS, STRIPS, TILES, make
from tests.support.tiff_by_hand import LONG, SHORT, Directory, Shape, Tags, make_directory, pack, write_directories

JPEG = 7
EXTRA, PREDICTOR, COMPRESSION, FILL_ORDER, SUBSAMPLING = 338, 317, 259, 266, 530


def combinations() -> Iterator[Combination]:
    """Yield all rarer kinds."""
    yield from _levels()
    yield from _alphas()
    yield from _samples()
    yield from _predictors()
    yield from _bit_orders()
    yield from _jpegs()
    yield from _codecs_with_alpha()
    yield from _jpeg_2000()


def _deflate(segment: NDArray[Any]) -> bytes:
    return imagecodecs.zlib_encode(np.ascontiguousarray(segment).tobytes())


def _levels() -> Iterator[Combination]:
    """Yield pyramids whose colours are converted in every level."""
    rgb = blocky_picture(4, (200, 330))
    rgb_levels = [rgb, rgb[::2, ::2], rgb[::4, ::4]]
    alpha = np.tile((np.linspace(-0.5, 1.5, 330).clip(0, 1) * 255).round().astype(np.uint8), (200, 1))
    alphas = [alpha, alpha[::2, ::2], alpha[::4, ::4]]
    codes, colours = noise(200, 330), noise(256, 3)
    code_levels = [codes, codes[::2, ::2], codes[::4, ::4]]
    inks = noise(200, 330, 4)
    ink_levels = [inks, inks[::2, ::2], inks[::4, ::4]]
    table = [int(value) * 257 for value in colours.T.ravel()]
    for words, photometric, stored, truth, tags, tolerance in (
        ("YCbCr 4:4:4", 6, [ycbcr_of(level) for level in rgb_levels], rgb_levels, {SUBSAMPLING: (SHORT, [1, 1])}, 3),
        ("CMYK", 5, ink_levels, [rgb_of_cmyk(level) for level in ink_levels], {}, 2),
        ("palette", 3, code_levels, [colours[level] for level in code_levels], {320: (SHORT, table)}, 0),
        (
            "RGB with unassociated alpha", 2, [np.dstack(pair) for pair in zip(rgb_levels, alphas, strict=True)],
            [over(255, *pair) for pair in zip(rgb_levels, alphas, strict=True)], {EXTRA: (SHORT, [2])}, 2,
        ),
        ("WhiteIsZero", 0, code_levels, code_levels, {}, 0),
    ):  # fmt: skip
        for place in ("SubIFDs", "pages"):
            write = _pyramid(stored, photometric, tags, place)
            levels = tuple(planes(level) for level in truth)
            decoder = "GDAL" if words == "WhiteIsZero" else "libtiff"
            yield Combination(
                HAND,
                "TIFF",
                "deflate",
                words,
                "uint8",
                f"tiles 64 × 64, levels as {place}",
                write,
                levels,
                decoder,
                tolerance,
                tolerance,
            )


def _pyramid(stored: Sequence[Pixels], photometric: int, tags: Tags, place: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        main, *others = (
            make_directory(
                level,
                photometric,
                Shape(tile=(64, 64)),
                8,
                _deflate,
                tags={**tags, **({254: (LONG, [1])} if number else {})},
            )
            for number, level in enumerate(stored)
        )
        with_levels = Directory(main.tags, main.segments, others)
        write_directories(path, [with_levels] if place == "SubIFDs" else [main, *others])

    return write


def _alphas() -> Iterator[Combination]:
    rgb, grey, alpha = picture(), picture(1)[..., 0], ramp_alpha()
    for kind, code in (("associated", 1), ("unassociated", 2)):
        for factor, depth in ((1, "uint8"), (257, "uint16")):
            stored = (grey * (alpha / 255)).round().astype(np.uint8) if code == 1 else grey
            image = np.dstack([stored, alpha]).astype(depth) * np.dtype(depth).type(factor)
            truth = planes(over(0, grey[..., None], alpha)).astype(depth) * np.dtype(depth).type(factor)
            yield make(
                image, depth, "tiles 16 × 32", TILES, colours=f"BlackIsZero with {kind} alpha", truth=truth,
                tags={EXTRA: (SHORT, [code])}, tolerance=2 * factor,
            )  # fmt: skip
    share = alpha[..., None] / np.float32(255)
    floats = (rgb / 255).astype(np.float32)
    yield make(
        np.dstack([floats, share]), "float32", "tiles 16 × 32", TILES, photometric=2, colours="RGB with unassociated alpha",
        truth=planes(floats * share + 1 - share), tags={EXTRA: (SHORT, [2])}, tolerance=0.001,
    )  # fmt: skip
    codes, colours = noise(*SIZE), noise(256, 3)
    yield make(
        np.dstack([codes, alpha]), "uint8", "tiles 16 × 32", TILES, photometric=3,
        colours="palette with unassociated alpha", truth=planes(over(255, colours[codes], alpha)), tolerance=2,
        tags={EXTRA: (SHORT, [2]), 320: (SHORT, [int(value) * 257 for value in colours.T.ravel()])},
    )  # fmt: skip
    image = np.dstack([ycbcr_of(blocky_picture()), alpha])
    yield make(
        image, "uint8", "tiles 16 × 32", TILES, photometric=6, colours="YCbCr 4:4:4 with unassociated alpha",
        truth=planes(over(255, blocky_picture(), alpha)), tolerance=4,
        tags={EXTRA: (SHORT, [2]), SUBSAMPLING: (SHORT, [1, 1])},
    )  # fmt: skip


def _samples() -> Iterator[Combination]:
    for dtype in ("uint16", "int16", "uint32", "float16", "float32", "float64", "int8"):
        image = noise(*SIZE, 3, dtype=dtype)
        for order in "<>":
            depth = ("big-endian " if order == ">" else "") + dtype
            yield make(image, depth, "strips of 7", STRIPS, photometric=2, colours=RGB, order=order, decoder="tifffile")
    for samples in (4, 5):
        yield make(
            noise(*SIZE, samples), "uint8", f"strips of 7, {samples} samples without ExtraSamples", STRIPS,
            photometric=2, colours=RGB, decoder="tifffile",
        )  # fmt: skip


def _predictors() -> Iterator[Combination]:
    rgb = noise(*SIZE, 3)
    # It belongs to compression (TIFF 6.0, section 14): libtiff reads no predictor of plain numbers.
    for layout in ("strips of 7", "tiles 16 × 32"):
        yield make(
            rgb, "uint8", f"{layout}, a Predictor without effect", LAYOUTS[layout], photometric=2, colours=RGB,
            decoder="libtiff", tags={PREDICTOR: (SHORT, [2])},
        )  # fmt: skip
    for samples in (2, 4, 6):
        image = noise(*SIZE, samples)
        for layout in ("tiles 16 × 32", "strips of 7, separate"):
            yield make(
                image, "uint8", f"{layout}, {samples} samples", LAYOUTS[layout],
                compression="deflate predictor 2", encode=_predicted, decoder="GDAL",
                tags={COMPRESSION: (SHORT, [8]), PREDICTOR: (SHORT, [2]), EXTRA: (SHORT, [0] * (samples - 1))},
            )  # fmt: skip
    ycbcr = ycbcr_of(blocky_picture())
    yield make(
        ycbcr, "uint8", "tiles 16 × 32", TILES, photometric=6, colours="YCbCr 4:4:4", compression="deflate predictor 2",
        encode=_predicted, truth=planes(blocky_picture()), decoder="libtiff", tolerance=3, agreement=3,
        tags={COMPRESSION: (SHORT, [8]), PREDICTOR: (SHORT, [2]), SUBSAMPLING: (SHORT, [1, 1])},
    )  # fmt: skip
    for dtype in ("uint32", "uint64"):
        for order in "<>":
            image = noise(*SIZE, dtype=dtype)
            yield make(
                image, ("big-endian " if order == ">" else "") + dtype, "tiles 16 × 32", TILES, order=order,
                compression="deflate predictor 2", encode=lambda segment, order=order: _predicted(segment, order),
                decoder="GDAL", tags={COMPRESSION: (SHORT, [8]), PREDICTOR: (SHORT, [2])},
            )  # fmt: skip


def _predicted(segment: NDArray[Any], order: str = "<") -> bytes:
    differences = np.diff(segment, axis=1, prepend=np.zeros_like(segment[:, :1]))
    return imagecodecs.zlib_encode(pack(differences, segment.dtype.itemsize * 8, order))


def _bit_orders() -> Iterator[Combination]:
    """Yield files whose bytes, compressed or not, have their bits in reverse."""
    rgb, few = noise(*SIZE, 3), noise(*SIZE, dtype="uint16", high=4095)
    for name, code, encode in (
        ("none", 1, bytes), ("LZW", 5, imagecodecs.lzw_encode), ("deflate", 8, imagecodecs.zlib_encode),
        ("packbits", 32773, imagecodecs.packbits_encode),
    ):  # fmt: skip
        yield make(
            rgb, "uint8, FillOrder 2", "tiles 16 × 32", TILES, photometric=2, colours=RGB, compression=name,
            decoder="GDAL", encode=lambda segment,
            encode=encode: imagecodecs.bitorder_encode(encode(np.ascontiguousarray(segment).tobytes())),
            tags={COMPRESSION: (SHORT, [code]), FILL_ORDER: (SHORT, [2])},
        )  # fmt: skip
    yield make(
        few, "12 bit, FillOrder 2", "strips of 7", STRIPS, bits=12, tags={FILL_ORDER: (SHORT, [2])}, decoder="GDAL",
        encode=lambda segment: imagecodecs.bitorder_encode(pack(segment, 12, "<")),
    )  # fmt: skip


def _jpegs() -> Iterator[Combination]:
    rgb, cmyk, grey = picture(), picture(4), picture(1)

    def encode(segment: Pixels, **options: Any) -> bytes:
        return imagecodecs.jpeg8_encode(np.ascontiguousarray(segment), level=97, **options)

    # RGB is never subsampled, so these hold YCbCr, whatever the tag says.
    for subsampling in ("422", "420"):
        yield make(
            rgb, "uint8", "tiles 16 × 32", TILES, photometric=2, colours=f"RGB that is YCbCr {':'.join(subsampling)} inside",
            compression="JPEG without JFIF header", tolerance=25, tags={COMPRESSION: (SHORT, [JPEG])},
            encode=lambda segment, subsampling=subsampling: _without_jfif(encode(segment, subsampling=subsampling)),
        )  # fmt: skip
    yield make(
        grey, "uint8", "tiles 16 × 32", TILES, photometric=0, colours="WhiteIsZero", compression="JPEG", encode=encode,
        tolerance=10, tags={COMPRESSION: (SHORT, [JPEG])}, decoder="GDAL", agreement=2,
    )  # fmt: skip
    yield make(
        ycbcr_of(rgb), "uint8", "tiles 16 × 32, separate", LAYOUTS["tiles 16 × 32, separate"], photometric=6,
        colours="YCbCr 4:4:4", compression="JPEG", encode=encode, truth=planes(rgb), tolerance=12,
        tags={COMPRESSION: (SHORT, [JPEG]), SUBSAMPLING: (SHORT, [1, 1])},
    )  # fmt: skip
    four = {"colorspace": "CMYK", "outcolorspace": "CMYK"}
    yield make(
        cmyk, "uint8", "tiles 16 × 32, separate", LAYOUTS["tiles 16 × 32, separate"], photometric=5, colours="CMYK",
        compression="JPEG", encode=encode, truth=planes(rgb_of_cmyk(cmyk)), tolerance=15,
        tags={COMPRESSION: (SHORT, [JPEG])},
    )  # fmt: skip
    yield make(
        cmyk, "uint8", "strips of 16", Shape(rows=16), photometric=5, colours="CMYK", compression="JPEG",
        encode=lambda segment: encode(segment, **four), truth=planes(rgb_of_cmyk(cmyk)), tolerance=15,
        tags={COMPRESSION: (SHORT, [JPEG])}, decoder="Pillow", agreement=4,
    )  # fmt: skip
    channels = np.dstack([picture(3)[..., 2], picture(3)[..., 0]])
    yield make(
        channels, "uint8", "tiles 16 × 32, separate, 2 samples", LAYOUTS["tiles 16 × 32, separate"], compression="JPEG",
        encode=encode, tolerance=12, tags={COMPRESSION: (SHORT, [JPEG]), EXTRA: (SHORT, [0])}, decoder="GDAL",
        agreement=2,
    )  # fmt: skip
    deep = noise(*SIZE, dtype="uint16")
    yield make(
        deep, "uint16", "tiles 16 × 32", TILES, compression="JPEG lossless",
        encode=lambda segment: imagecodecs.ljpeg_encode(np.ascontiguousarray(segment[..., 0]), bitspersample=16),
        tags={COMPRESSION: (SHORT, [JPEG])}, decoder="tifffile",
    )  # fmt: skip
    twelve = picture(1).astype(np.uint16) * 16
    yield make(
        twelve, "12 bit", "tiles 16 × 32", TILES, compression="JPEG", bits=12, tolerance=120, agreement=2,
        encode=lambda segment: imagecodecs.jpeg8_encode(np.ascontiguousarray(segment[..., 0]), level=97, bitspersample=12),
        tags={COMPRESSION: (SHORT, [JPEG])}, decoder="tifffile",
    )  # fmt: skip


def _without_jfif(data: bytes) -> bytes:
    """Leave out the APP0 marker, which is the first."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6]) :]


def _codecs_with_alpha() -> Iterator[Combination]:
    rgba = np.dstack([picture(), ramp_alpha()])
    truth = planes(over(255, picture(), ramp_alpha()))
    for name, code, encode in (
        ("WebP lossless", 50001, lambda segment: imagecodecs.webp_encode(segment, lossless=True)),
        ("JPEG XL lossless", 50002, lambda segment: imagecodecs.jpegxl_encode(segment, lossless=True)),
        ("PNG", 34933, imagecodecs.png_encode), ("zstd", 50000, lambda segment: imagecodecs.zstd_encode(segment.tobytes())),
        ("LERC", 34887, imagecodecs.lerc_encode),
    ):  # fmt: skip
        yield make(
            rgba, "uint8", "tiles 16 × 32", TILES, photometric=2, colours="RGB with unassociated alpha",
            compression=name, truth=truth, encode=lambda segment, encode=encode: encode(np.ascontiguousarray(segment)),
            tolerance=2,
            tags={COMPRESSION: (SHORT, [code]), EXTRA: (SHORT, [2]), **({50674: (LONG, [4, 0])} if name == "LERC" else {})},
        )  # fmt: skip


def _jpeg_2000() -> Iterator[Combination]:
    rgb, deep, signed = noise(*SIZE, 3), noise(*SIZE, 3, dtype="uint16"), noise(*SIZE, dtype="int16")

    def encode(segment: Pixels, container: str = "J2K") -> bytes:
        squeezed = np.ascontiguousarray(segment[..., 0] if segment.shape[2] == 1 else segment)
        return imagecodecs.jpeg2k_encode(squeezed, level=0, codecformat=container, mct=False, reversible=True)

    for words, image, depth, photometric, colours in (
        ("in its own file format", rgb, "uint8", 2, RGB), ("codestream", deep, "uint16", 2, RGB),
        ("codestream", signed, "int16", 1, GREY),
    ):  # fmt: skip
        container = "JP2" if "file" in words else "J2K"
        for code in (33005, 34712):
            yield make(
                image, depth, "tiles 16 × 32", TILES, photometric=photometric, colours=colours,
                compression=f"JPEG 2000 {code} lossless, {words}", decoder="tifffile", tags={COMPRESSION: (SHORT, [code])},
                encode=lambda segment, container=container: encode(segment, container),
            )  # fmt: skip
