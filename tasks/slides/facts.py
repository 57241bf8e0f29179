"""What is known of a slide: facts on one image of a file, which fit into JSON and travel between processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from slidesam.tasks.slides.source import Display, SourceSpec

EXTENSIONS = (
    "zarr", "zip", "svs", "tif", "tiff", "btf", "tf2", "tf8", "ndpi", "scn", "bif", "qptiff", "lsm", "stk", "avs", "ome",
)  # fmt: skip


class Level(BaseModel):
    """One resolution of a slide."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    shape: tuple[int, int]
    """Height and width in pixels."""
    downsample: tuple[float, float]
    """How much coarser than level 0, along y and x."""
    chunks: tuple[int, int, int, int, int]
    """What is decoded at once, (t, c, z, y, x)."""


class SlideIdentity(BaseModel):
    """What makes a slide this slide and no other: part of every fingerprint."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: str
    """Absolute path, links resolved."""
    size: int
    """Bytes of the file; of the metadata files of a Zarr folder."""
    modified: int
    """Time of the last change in ns; the newest of the metadata files of a Zarr folder."""
    files: tuple[tuple[int, int], ...]
    """Size and time of the last change of each of these files: what a reader compares, since sum and newest can hide a change."""
    digest: str
    """BLAKE2b of the first and last MiB, hexadecimal; of a Zarr folder: metadata files and number of missing chunks."""


class Slide(BaseModel):
    """Facts about one image of a slide file, and which of its planes the settings chose. Fits into JSON."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: Path
    """The file or folder, absolute."""
    name: str
    """Name without known extensions."""
    format: str
    """Kind of file in words."""
    kind: Literal["tiff", "zarr"]
    """Whether it is a file of the TIFF family or a Zarr folder."""
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
    """Name of the pixel type, such as uint8; truth values are handed out as uint8, 0 and 1."""
    levels: tuple[Level, ...]
    """Resolutions, finest first."""
    mpp: tuple[float, float] | None
    """Pixel size of level 0 in µm, along y and x; none where unknown."""
    channel_names: tuple[str, ...]
    """One name per channel."""
    display: tuple[Display, ...]
    """How the file wants each channel shown."""
    is_rgb: bool
    """Whether the channels are red, green and blue."""
    t: int
    """Time point chosen by the settings."""
    z: int
    """Focal plane chosen by the settings."""
    channels: tuple[int, ...]
    """Channels chosen by the settings."""
    identity: SlideIdentity
    """What makes it this slide."""
    warnings: tuple[str, ...]
    """What a person should know, one sentence each."""
    source: SourceSpec | None = Field(default=None, exclude=True, repr=False)
    """What opening the slide again needs; none in facts that were read from JSON, or if it would be too large to travel."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of level 0 in pixels."""
        return self.levels[0].shape


def slide_name(path: str | os.PathLike[str], given: str | None = None) -> str:
    """Name of a slide: the given one, else its file's name without known extensions, fit to be a file's name itself.

    An image inside a Zarr store is named after the store too, since every store has an image called 0.

    Example:
        >>> slide_name("scans/CMU-1.svs"), slide_name("a.b.OME.TIF"), slide_name("plate.zarr/A/1/0")
        ('CMU-1', 'a.b', 'plate_A_1_0')
    """
    if given is not None:
        return given
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 (resolve() would follow links and change the name)
    stores = [at for at, part in enumerate(parts[:-1]) if part.lower().endswith(".zarr")]
    names = parts[stores[-1] :] if stores else parts[-1:]
    name = "_".join(_without_extensions(part) for part in names)
    name = "".join(
        character if character.isprintable() and character not in "/\\" else "_" for character in name
    ).strip()
    return name if name.strip("._ ") else "slide"


def _without_extensions(name: str) -> str:
    while True:
        stem, dot, extension = name.rpartition(".")
        if not dot or extension.lower() not in EXTENSIONS:
            return name
        if not stem.strip("."):
            return extension
        name = stem
