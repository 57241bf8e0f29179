"""Files of the pixel oracle that are written by hand: colour spaces, with every codec that doesn't convert them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tests.support.pixel_files import (
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
from tests.support.pixel_files_by_hand import LAYOUTS, STRIPS, TILES, make
from tests.support.tiff_by_hand import RATIONAL, SHORT, Shape

CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (1, bytes), "LZW": (5, imagecodecs.lzw_encode), "deflate": (8, imagecodecs.zlib_encode),
    "packbits": (32773, imagecodecs.packbits_encode), "LZMA": (34925, imagecodecs.lzma_encode),
    "zstd": (50000, imagecodecs.zstd_encode),
}  # fmt: skip
YCBCR, SEPARATED, PALETTE = 6, 5, 3
STUDIO_RANGE = (RATIONAL, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])
BT709 = (0.2126, 0.7152, 0.0722)


def combinations() -> Iterator[Combination]:
    """Yield all files about colour spaces."""
    yield from _ycbcr()
    yield from _subsampled()
    yield from _inks()
    yield from _palettes()
    yield from _white_is_zero()
    yield from _alphas()
    yield from _others()


def _encode(name: str) -> Callable[[NDArray[Any]], bytes]:
    return lambda segment: CODECS[name][1](np.ascontiguousarray(segment).tobytes())


def _ycbcr() -> Iterator[Combination]:
    rgb = blocky_picture()
    for name, (code, _) in CODECS.items():
        for layout in ("strips of 7", "tiles 16 × 32", "tiles 16 × 32, separate"):
            yield make(
                ycbcr_of(rgb), "uint8", layout, LAYOUTS[layout], photometric=YCBCR, colours="YCbCr 4:4:4", truth=planes(rgb),
                compression=name, encode=_encode(name), tags={259: (SHORT, [code]), 530: (SHORT, [1, 1])},
                decoder="libtiff", tolerance=3, agreement=3,
            )  # fmt: skip
    luma, blue, red = np.moveaxis(ycbcr_of(rgb).astype(float), 2, 0)
    studio = np.stack([16 + luma * 219 / 255, 128 + (blue - 128) * 224 / 255, 128 + (red - 128) * 224 / 255], -1)
    for order in "<>":
        yield make(
            studio.round().astype(np.uint8), ("big-endian " if order == ">" else "") + "uint8",
            "strips of 7, values 16 to 235", STRIPS, photometric=YCBCR, colours="YCbCr 4:4:4", truth=planes(rgb),
            decoder="libtiff", tolerance=4, agreement=4, order=order, tags={530: (SHORT, [1, 1]), 532: STUDIO_RANGE},
        )  # fmt: skip
    weights = [part for weight in BT709 for part in (round(weight * 10000), 10000)]
    red, green, blue = np.moveaxis(rgb.astype(float), 2, 0)
    luma = BT709[0] * red + BT709[1] * green + BT709[2] * blue
    hd = np.stack([luma, (blue - luma) / (2 - 2 * BT709[2]) + 128, (red - luma) / (2 - 2 * BT709[0]) + 128], -1)
    yield make(
        hd.round().clip(0, 255).astype(np.uint8), "uint8", "strips of 7, coefficients of BT.709", STRIPS, photometric=YCBCR,
        colours="YCbCr 4:4:4", truth=planes(rgb), decoder="libtiff", tolerance=4, agreement=4,
        tags={530: (SHORT, [1, 1]), 529: (RATIONAL, weights)},
    )  # fmt: skip


def _subsampled() -> Iterator[Combination]:
    """Yield packed units of h × v luminances, then one Cb and one Cr (TIFF 6.0, section 21)."""
    rgb = blocky_picture(4, (60, 80))
    for horizontal, vertical in ((2, 1), (2, 2), (4, 2), (1, 2), (4, 1), (4, 4)):
        for name in ("none", "LZW", "deflate", "zstd"):
            for words, shape in {"strips of 20": Shape(rows=20), "tiles 16 × 32": TILES}.items():
                yield make(
                    ycbcr_of(rgb), "uint8", words, shape, photometric=YCBCR, truth=planes(rgb),
                    colours=f"YCbCr subsampled {horizontal} × {vertical}", compression=name,
                    encode=lambda segment, h=horizontal, v=vertical, name=name: CODECS[name][1](_units(segment, h, v)),
                    tags={259: (SHORT, [CODECS[name][0]]), 530: (SHORT, [horizontal, vertical])},
                    # libtiff 4.5.0 reads tiles of 4 × 4 units wrong.
                    decoder="" if words.startswith("tiles") and vertical == 4 else "libtiff", tolerance=3, agreement=3,
                )  # fmt: skip


def _units(ycbcr: Pixels, horizontal: int, vertical: int) -> bytes:
    height, width = ycbcr.shape[:2]
    padded = np.pad(ycbcr, ((0, -height % vertical), (0, -width % horizontal), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // vertical, padded.shape[1] // horizontal
    units = padded.reshape(rows, vertical, columns, horizontal, 3).transpose(0, 2, 4, 1, 3)
    luma = units[:, :, 0].reshape(rows, columns, -1)
    return np.concatenate([luma, units[:, :, 1:, 0, 0]], -1).tobytes()


def _inks() -> Iterator[Combination]:
    cmyk = noise(*SIZE, 4)
    truth = planes(rgb_of_cmyk(cmyk))
    for name, (code, _) in CODECS.items():
        yield make(
            cmyk, "uint8", "tiles 16 × 32", TILES, photometric=SEPARATED, colours="CMYK", truth=truth, compression=name,
            encode=_encode(name), tags={259: (SHORT, [code]), 332: (SHORT, [1])}, decoder="libtiff", tolerance=2, agreement=2,
        )  # fmt: skip
    wide = cmyk.astype(np.uint16) * 257
    yield make(
        wide, "uint16", "strips of 7", STRIPS, photometric=SEPARATED, colours="CMYK", truth=truth.astype(np.uint16) * 257,
        tolerance=257,
    )  # fmt: skip
    with_alpha = np.dstack([cmyk, ramp_alpha()])
    yield make(
        with_alpha, "uint8", "strips of 7", STRIPS, photometric=SEPARATED, colours="CMYK with unassociated alpha",
        truth=planes(over(255, rgb_of_cmyk(cmyk), ramp_alpha())), tags={338: (SHORT, [2])}, tolerance=2,
    )  # fmt: skip
    for inks, ink_set in ((6, 2), (3, 2), (3, 1)):
        yield make(
            noise(*SIZE, inks), "uint8", "strips of 7", STRIPS, photometric=SEPARATED, colours=f"{inks} inks of set {ink_set}",
            tags={332: (SHORT, [ink_set])}, refusal=("ink", "CMYK", "separated"),
        )  # fmt: skip


def _palettes() -> Iterator[Combination]:
    for bits in (1, 2, 4, 8):
        codes, colours = noise(*SIZE, high=2**bits - 1), noise(2**bits, 3)
        truth = planes(colours[codes])
        for words, factor in (("", 257), (", entries of 8 bit", 1)):
            for layout in ("strips of 7", "tiles 16 × 32"):
                table = [int(value) * factor for value in colours.T.ravel()]
                yield make(
                    codes, f"{bits} bit", layout + words, LAYOUTS[layout], bits=bits, photometric=PALETTE, colours="palette",
                    truth=truth, tags={320: (SHORT, table)}, decoder="libtiff",
                )  # fmt: skip
    codes, colours = noise(*SIZE, dtype="uint16"), noise(2**16, 3)
    yield make(
        codes, "16 bit", "strips of 7", STRIPS, photometric=PALETTE, colours="palette", truth=planes(colours[codes]),
        tags={320: (SHORT, [int(value) * 257 for value in colours.T.ravel()])}, decoder="",
    )  # fmt: skip
    yield make(
        noise(*SIZE), "uint8", "strips of 7, its table missing", STRIPS, photometric=PALETTE, colours="palette",
        refusal=("palette", "ColorMap"),
    )  # fmt: skip


def _white_is_zero() -> Iterator[Combination]:
    for dtype in ("uint8", "uint16", "uint32", "int16", "float32"):
        for order in "<>":
            image = noise(*SIZE, dtype=dtype)
            yield make(
                image, ("big-endian " if order == ">" else "") + dtype, "strips of 7", STRIPS, photometric=0,
                colours="WhiteIsZero", decoder="GDAL", order=order,
            )  # fmt: skip


def _alphas() -> Iterator[Combination]:
    rgb, alpha = picture(), ramp_alpha()
    premultiplied = (rgb * (alpha[..., None] / 255)).round().astype(np.uint8)
    truth = planes(over(255, rgb, alpha))
    for code, image, words in ((1, premultiplied, "associated"), (2, rgb, "unassociated")):
        for layout, shape in LAYOUTS.items():
            yield make(
                np.dstack([image, alpha]), "uint8", layout, shape, photometric=2, colours=f"RGB with {words} alpha", truth=truth,
                tags={338: (SHORT, [code])}, decoder="libtiff", tolerance=2, agreement=2,
            )  # fmt: skip
        wide = np.dstack([image, alpha]).astype(np.uint16) * 257
        for order in "<>":
            yield make(
                wide, ("big-endian " if order == ">" else "") + "uint16", "tiles 16 × 32", TILES, photometric=2, order=order,
                colours=f"RGB with {words} alpha", truth=truth.astype(np.uint16) * 257, tags={338: (SHORT, [code])}, decoder="",
                tolerance=2 * 257,
            )  # fmt: skip
    opaque = np.dstack([noise(*SIZE, 3), np.full(SIZE, 255, np.uint8)])
    yield make(
        opaque, "uint8", "tiles 16 × 32, alpha 255 everywhere", TILES, photometric=2, colours="RGB with unassociated alpha",
        truth=planes(opaque[..., :3]), tags={338: (SHORT, [2])}, decoder="libtiff",
    )  # fmt: skip
    yield make(
        np.dstack([rgb, alpha, noise(*SIZE)]), "uint8", "strips of 7, and a sample of no meaning", STRIPS, photometric=2,
        colours="RGB with unassociated alpha", truth=np.concatenate([truth, planes(noise(*SIZE))]), tags={338: (SHORT, [2, 0])},
        tolerance=2,
    )  # fmt: skip


def _others() -> Iterator[Combination]:
    rgb = noise(*SIZE, 3)
    for code, words in ((8, "CIELab"), (9, "ICCLab"), (10, "ITULab"), (34892, "LinearRaw"), (32845, "LogLuv")):
        for layout in ("strips of 7", "tiles 16 × 32"):
            shape = LAYOUTS[layout]
            yield make(rgb, "uint8", layout, shape, photometric=code, colours=words, refusal=(words,))
    for code, words in ((32803, "CFA"), (32844, "LogL"), (4, "transparency mask")):
        yield make(noise(*SIZE), "uint8", "strips of 7", STRIPS, photometric=code, colours=words, refusal=(words,))
    for samples, photometric, words in ((1, 2, RGB), (3, PALETTE, "palette")):
        yield make(
            noise(*SIZE, samples), "uint8", f"strips of 7, {samples} samples", STRIPS, photometric=photometric,
            colours=f"{words} that contradicts its samples", refusal=("sample", "palette", "RGB"),
        )  # fmt: skip
    yield make(
        rgb, "uint8", "strips of 7, colours 8, 8 and 16 bit", STRIPS, photometric=2, colours=RGB, tags={258: (SHORT, [8, 8, 16])},
        refusal=("bit",),
    )  # fmt: skip
