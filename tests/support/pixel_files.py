"""What a file of the pixel oracle is: a combination of format, compression, colours and layout whose pixels are known beforehand.

`pixel_files_*` write such files with many programs, `pixel_decoders` reads them with a second one, `pixel_oracle` compares. A new
combination is a row more in one of these files' tables.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # (c, y, x)
SIZE = (61, 83)  # no multiple of any tile
GREY, RGB = "BlackIsZero", "RGB"
# What the warnings must say where colours are converted, are shown otherwise than they are stored, or aren't there.
REMARKS = {
    "WhiteIsZero": "0 is white",
    "CMYK": "CMYK",
    "palette": "palette",
    "alpha": "alpha",
    "sparse": "aren't there",
}
# Where each writer's package or program is looked for.
WRITERS = {
    "tifffile": "tifffile", "libvips": "pyvips", "Pillow": "PIL", "GDAL": "rasterio", "libtiff": "tiffcp", "by hand": "struct",
    "ome-zarr-py": "ome_zarr", "zarr": "zarr",
}  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """One row of the oracle's table.

    Attributes:
        writer: One of `WRITERS`.
        format: Such as TIFF, BigTIFF, OME-Zarr 0.5.
        compression: The file's compression and predictor, in words.
        photometric: The file's colour space.
        depth: Bits and kind of a stored sample, such as 12 bit, int16, big-endian float32.
        layout: Tiles, strips, chunks and shards, and how samples lie.
        write: Writes the file.
        levels: What a reader has to return, finest first, (c, y, x) each; none for a file that has to be refused.
        decoder: What reads the file too, a name in `pixel_decoders.DECODERS`; empty where no other program reads it.
        tolerance: Largest difference from the truth that the compression or the colour conversion explains.
        agreement: Largest difference between two decoders.
        refusal: Words of which the error must have one, if the file has to be refused.
    """

    writer: str
    format: str
    compression: str
    photometric: str
    depth: str
    layout: str
    write: Callable[[Path], object]
    levels: tuple[Pixels, ...]
    decoder: str
    tolerance: float = 0
    agreement: float = 0
    refusal: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """Words that the slide's warnings must have."""
        return next((remark for words, remark in REMARKS.items() if words in self.photometric + self.layout), "")

    @property
    def name(self) -> str:
        """Everything that tells it from the others, in one line."""
        return ", ".join((self.writer, self.format, self.compression, self.photometric, self.depth, self.layout))

    @property
    def suffix(self) -> str:
        """Extension of the file's name."""
        return (
            ".ome.zarr" if "Zarr" in self.format else {"OME-TIFF": ".ome.tif", "SVS": ".svs"}.get(self.format, ".tif")
        )


@cache
def is_installed(module: str) -> bool:
    """Tell whether a Python module or a program can be used."""
    return bool(shutil.which(module)) or importlib.util.find_spec(module) is not None


def missing_programs(combination: Combination, decoders: Mapping[str, str]) -> list[str]:
    """Name what isn't installed of a row's writer and decoder; `decoders` names the module or program of each decoder."""
    needed = {WRITERS[combination.writer]} | ({decoders[combination.decoder]} if combination.decoder else set())
    return sorted(name for name in needed if not is_installed(name))


# --- Pictures.


def noise(*shape: int, dtype: str = "uint8", low: int = 0, high: int | None = None) -> Pixels:
    """Make an array of random numbers that use the whole range of their type; the same at each call."""
    kind = np.dtype(dtype)
    rng = np.random.default_rng([*shape, low, ord(kind.char)])
    if kind.kind == "f":
        return rng.normal(0.5, 1000, shape).astype(kind)
    if kind.kind == "b":
        return rng.random(shape) > 0.5
    limits = np.iinfo(kind)
    return rng.integers(
        low or limits.min, limits.max if high is None else high, shape, kind.newbyteorder("="), True
    ).astype(kind)


@cache
def picture(bands: int = 3, size: tuple[int, int] = SIZE) -> Pixels:
    """Make a smooth uint8 picture (y, x, band), as JPEG likes it: each band another one, none of them symmetrical."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    height, width = size
    bands_of = (
        200 - 120 * np.exp(-((y - height / 3) ** 2 + (x - width / 3) ** 2) / 300),
        60 + 100 * x / width,
        120 + 80 * np.sin(y / height * 3),
        30 + 60 * y / height + 40 * x / width,
    )
    return np.stack([bands_of[band % 4] for band in range(bands)], -1).round().astype(np.uint8)


@cache
def blocky_picture(factor: int = 4, size: tuple[int, int] = SIZE) -> Pixels:
    """Make an RGB picture of single-coloured squares: halving its colours loses nothing."""
    height, width = (-(-side // factor) for side in size)
    small = noise(height, width, 3, low=40, high=215)
    return small.repeat(factor, 0).repeat(factor, 1)[: size[0], : size[1]]


def planes(image: Pixels) -> Pixels:
    """Return (y, x) or (y, x, c) pixels as (c, y, x)."""
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), 2, 0))


# --- Colours, as the specification defines them.


def ycbcr_of(rgb: Pixels) -> Pixels:
    """Convert (y, x, 3) RGB to full-range YCbCr with the coefficients of ITU-R BT.601 (TIFF 6.0, section 21)."""
    red, green, blue = np.moveaxis(rgb.astype(float), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return (
        np.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], -1)
        .round()
        .clip(0, 255)
        .astype(np.uint8)
    )


def rgb_of_cmyk(cmyk: Pixels) -> Pixels:
    """Convert (y, x, 4) inks to RGB without a profile: ink and black each take their share of light (TIFF 6.0, section 16)."""
    light = 1 - cmyk.astype(float) / 255
    return (light[..., :3] * light[..., 3:] * 255).round().astype(np.uint8)


def over(background: int, image: Pixels, alpha: Pixels) -> Pixels:
    """Lay straight (y, x, c) uint8 colours over a background."""
    share = alpha[..., None].astype(float) / 255
    return (image * share + background * (1 - share)).round().astype(np.uint8)


@cache
def ramp_alpha() -> Pixels:
    """Make a uint8 alpha (y, x): nothing at the left, all at the right, a ramp between."""
    x = np.linspace(-0.7, 1.7, SIZE[1]).clip(0, 1)
    return np.tile((x * 255).round().astype(np.uint8), (SIZE[0], 1))
