"""Owns the facts about a slide: one image of a file, described so that it fits into JSON and travels between processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from slidesam.tasks.slides.source import Display, Pages, SourceSpec

EXTENSIONS = (
    "zarr", "zip", "svs", "tif", "tiff", "btf", "tf2", "tf8", "ndpi", "scn", "bif", "qptiff", "lsm", "stk", "avs", "ome",
)  # fmt: skip


class Level(BaseModel):
    """One resolution of a slide."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    shape: tuple[int, int]
    """Height and width in pixels."""
    downsample: tuple[float, float]
    """Factor by which it is coarser than level 0, along y and x."""
    chunks: tuple[int, int, int, int, int]
    """Sizes of what is decoded at once, (t, c, z, y, x)."""
    is_whole: bool = Field(default=True, exclude_if=bool)
    """Whether it shows all that level 0 shows: nothing is missing here that is there."""
    is_averaged: bool = Field(default=True, exclude_if=bool)
    """Whether its pixels average those of level 0, as far as a few places tell; else they are some of these."""

    @property
    def is_faithful(self) -> bool:
        """Whether it can stand for averages of level 0."""
        return self.is_whole and self.is_averaged


class SlideIdentity(BaseModel):
    """Identity of a slide's file: part of every fingerprint."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: str
    """Absolute path with links resolved."""
    size: int
    """Bytes of the file; of the metadata files of a Zarr folder."""
    modified: int
    """Time of the last change in ns; the newest of the metadata files of a Zarr folder."""
    files: tuple[tuple[int, int], ...]
    """Size and time of the last change of each of these files; readers compare these: sum and newest can hide a change."""
    digest: str
    """BLAKE2b of the first and last MiB, hexadecimal; also of the number of missing tiles or chunks; of a Zarr
    folder also of its metadata files."""


class Slide(BaseModel):
    """One image of a slide file, and the planes of it that the settings chose. Fits into JSON, except for `source`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: Path
    """The file or folder, absolute."""
    name: str
    """Name without known extensions."""
    format: str
    """Name of the file's format."""
    kind: Literal["tiff", "zarr"]
    """File of the TIFF family, or Zarr folder."""
    series: int
    """Image inside the file, counted from 0."""
    n_series: int
    """Number of images in the file."""
    size_t: int
    """Number of time points."""
    size_c: int
    """Number of channels; an alpha channel isn't counted."""
    size_z: int
    """Number of focal planes."""
    dtype: str
    """Name of the pixel type, such as uint8; booleans are read as uint8, 0 and 1."""
    levels: tuple[Level, ...]
    """Resolutions, finest first."""
    mpp: tuple[float, float] | None
    """Pixel size of level 0 in µm, along y and x; none where unknown."""
    mpp_origin: str | None = Field(default=None, exclude_if=lambda origin: origin is None)
    """Where the pixel size is stated: a place in the file, or setting slide.mpp; none where unknown."""
    origin: tuple[float, float] = Field(default=(0.0, 0.0), exclude_if=lambda origin: not any(origin))
    """Where the file says that the centre of the first pixel lies, in pixels of level 0 along y and x."""
    channel_names: tuple[str, ...]
    """One name per channel."""
    display: tuple[Display, ...]
    """Colour and display window of each channel."""
    is_rgb: bool
    """Whether the channels are red, green and blue."""
    t: int
    """Time point chosen by the settings."""
    z: int
    """Focal plane chosen by the settings."""
    channels: tuple[int, ...]
    """Channels chosen by the settings."""
    has_gaps: bool = Field(default=False, exclude_if=lambda has_gaps: not has_gaps)
    """Whether parts of it may not have been scanned: tiles or chunks are or can be missing, or there is alpha or a mask."""
    pages: Pages | None = Field(default=None, exclude_if=lambda pages: pages is None)
    """What the pages of the file were taken for if it doesn't say what they are: channels or focal planes."""
    identity: SlideIdentity
    """Identity of the file."""
    warnings: tuple[str, ...]
    """Warnings for people, one sentence each."""
    source: SourceSpec | None = Field(default=None, exclude=True, repr=False)
    """Description by which the file is opened without another inspection; none if the facts come from JSON, or if it is too large
    to travel."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of level 0 in pixels."""
        return self.levels[0].shape

    @property
    def position(self) -> tuple[float, float]:
        """Where the centre of the first pixel lies along y and x, in µm; in pixels where their size isn't known."""
        y, x = self.mpp or (1.0, 1.0)
        return self.origin[0] * y, self.origin[1] * x

    @property
    def unused_levels(self) -> tuple[int, ...]:
        """The levels that can't stand for averages of level 0, and so aren't used."""
        return tuple(number for number, level in enumerate(self.levels) if not level.is_faithful)


def slide_name(path: str | os.PathLike[str], chosen_name: str | None = None) -> str:
    """Choose the name of a slide: the chosen one, otherwise the file's name without known extensions, usable as a file name.

    An image inside a Zarr store is named after the store too, since every store has an image called 0.

    Example:
        >>> slide_name("scans/CMU-1.svs"), slide_name("a.b.OME.TIF"), slide_name("plate.zarr/A/1/0")
        ('CMU-1', 'a.b', 'plate_A_1_0')
    """
    if chosen_name is not None:
        return chosen_name
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 (resolve() would follow links and change the name)
    stores = [index for index, part in enumerate(parts[:-1]) if part.lower().endswith(".zarr")]
    names = parts[stores[-1] :] if stores else parts[-1:]
    name = "_".join(_strip_extensions(part) for part in names)
    name = "".join(
        character if character.isprintable() and character not in "/\\" else "_" for character in name
    ).strip()
    return name if name.strip("._ ") else "slide"


def _strip_extensions(name: str) -> str:
    while True:
        stem, dot, extension = name.rpartition(".")
        if not dot or extension.lower() not in EXTENSIONS:
            return name
        if not stem.strip("."):
            return extension
        name = stem
