"""Slides: what a file says of itself, and reading rectangles of it.

1. `open_slide` inspects a file and returns a `Slide`: facts that fit into JSON and travel between processes.
2. `SlideReader` opens the file that a `Slide` describes, in any process, and reads regions; only the tiles, strips or chunks
   that a region touches are read.

Files are looked into by `slide_tiff` and `slide_zarr`; a new kind of file is a new module beside them. Whatever is wrong with
a file comes out as one `SlideError` on one line.

Must not import Dask, Prefect or torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.errors import SettingsError, SlideError, SlideGoneError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.source import (
    RGB_NAMES,
    Display,
    Source,
    SourceFacts,
    TczyxView,
    downsample,
    errors_as_slide_errors,
    one_line_name,
)
from slidesam.tasks.slides.tiff.source import TiffSource
from slidesam.tasks.slides.zarr.source import ZarrSource

EXTENSIONS = (
    "zarr", "zip", "svs", "tif", "tiff", "btf", "tf2", "tf8", "ndpi", "scn", "bif", "qptiff", "lsm", "stk", "avs", "ome",
)  # fmt: skip
_NUCLEAR_STAIN = re.compile(r"dapi|hoechst|nucle|draq", re.IGNORECASE)
_DIGEST_BYTES = 2**20


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


def open_slide(path: str | os.PathLike[str], settings: SlideSettings = SlideSettings()) -> Slide:  # noqa: B008 (frozen)
    """Inspects a slide; no pixel is read.

    Args:
        path: SVS, TIFF or OME-TIFF file, OME-Zarr folder, or a folder that holds one Zarr store.
        settings: Which of its images and planes to use.

    Raises:
        SlideError: It can't be read, isn't an image, is damaged, or lays claim to sizes that can't be true.
        SettingsError: It doesn't have the series, time point, plane or channel that the settings ask for.
    """
    given = Path(path)
    file = one_line_name(given)
    with errors_as_slide_errors(file, "can't be opened", "see that it is there and can be read"):
        location = Path(os.path.abspath(given))  # noqa: PTH100 (a link keeps its name)
        source = _open_source(location, file, settings.series)
        try:
            return _slide(location, file, source, settings)
        finally:
            source.close()


def _open_source(path: Path, file: str, series: int) -> Source:
    try:
        path.stat()
        if path.is_dir():
            return ZarrSource(path, series)
        if not path.is_file():
            raise SlideError(f"{file}: is no regular file; point at a slide file or an OME-Zarr folder")
        return TiffSource(path, series)
    except FileNotFoundError:
        raise SlideError(f"{file}: isn't there ({in_one_line(str(path))}); correct the path") from None
    except PermissionError:
        raise SlideError(f"{file}: may not be read by this user; ask its owner for permission to read it") from None


def _slide(path: Path, file: str, source: Source, settings: SlideSettings) -> Slide:
    facts, finest = source.facts, source.facts.shapes[0]
    levels = tuple(
        Level(shape=(y, x), downsample=downsample((y, x), finest[3:]), chunks=source.view(number).chunks)
        for number, (*_, y, x) in enumerate(facts.shapes)
    )
    mpp, warnings = facts.mpp, [*facts.warnings, *source.remarks()]
    if settings.mpp is not None:
        if mpp is not None and abs(mpp[0] / settings.mpp - 1) > 0.02:
            warnings.append(
                f"its pixel size of {mpp[0]:g} µm is replaced by {settings.mpp:g} µm from setting slide.mpp"
            )
        mpp = (settings.mpp, settings.mpp)
    elif mpp is None:
        warnings.append("its pixel size isn't known; setting slide.mpp can state it")
    return Slide(
        path=path,
        name=slide_name(path, settings.name),
        format=facts.format,
        kind="zarr" if isinstance(source, ZarrSource) else "tiff",
        series=settings.series,
        n_series=facts.n_series,
        size_t=finest[0],
        size_c=finest[1],
        size_z=finest[2],
        dtype=facts.dtype.name,
        levels=levels,
        mpp=mpp,
        channel_names=facts.channel_names,
        display=facts.display,
        is_rgb=facts.is_rgb,
        t=_plane(file, "t", settings.t, finest[0], "time points"),
        z=_plane(file, "z", settings.z, finest[2], "focal planes"),
        channels=_channels(file, settings.channels, facts),
        identity=_identity(path, facts.identity_files, source.missing_chunks()),
        warnings=tuple(warnings),
    )


def _plane(file: str, setting: str, wanted: str | int, size: int, what: str) -> int:
    number = 0 if isinstance(wanted, str) else wanted
    if number >= size:
        raise SettingsError(f"setting slide.{setting}: {file} has {what} 0 to {size - 1}, not {number}")
    return number


def _channels(file: str, wanted: str | Sequence[int | str], facts: SourceFacts) -> tuple[int, ...]:
    names = facts.channel_names
    if isinstance(wanted, str):
        if facts.is_rgb:
            return tuple(range(len(RGB_NAMES)))
        return (next((number for number, name in enumerate(names) if _NUCLEAR_STAIN.search(name)), 0),)
    if not wanted:
        raise SettingsError("setting slide.channels: names no channel; give at least one, or auto")
    return tuple(_channel(file, channel, names) for channel in wanted)


def _channel(file: str, wanted: int | str, names: Sequence[str]) -> int:
    if isinstance(wanted, str):
        known = [name.lower() for name in names]
        if wanted.lower() in known:
            return known.index(wanted.lower())
    number = int(wanted) if isinstance(wanted, int) or wanted.isdecimal() else -1
    if 0 <= number < len(names):
        return number
    shown = ", ".join(f"{at} {name}" for at, name in enumerate(names[:12])) + (", ..." if len(names) > 12 else "")
    raise SettingsError(f"setting slide.channels: {file} has no channel {wanted!r}; it has {shown}")


def _identity(path: Path, files: Sequence[Path], missing_chunks: int) -> SlideIdentity:
    digest, states = hashlib.blake2b(digest_size=32), _states(files)
    for each, (size, _) in zip(files, states, strict=True):
        if len(files) > 1 or path.is_dir():
            digest.update(os.fsencode(os.path.relpath(each, path)) + b"\0")
        with each.open("rb") as stream:
            digest.update(stream.read(_DIGEST_BYTES))
            stream.seek(max(_DIGEST_BYTES, size - _DIGEST_BYTES))
            digest.update(stream.read(_DIGEST_BYTES))
    if missing_chunks:  # else labels of half a copy would be taken for those of the whole
        digest.update(b"\0missing chunks %d" % missing_chunks)
    return SlideIdentity(
        path=str(path.resolve()),
        size=sum(size for size, _ in states),
        modified=max(modified for _, modified in states),
        files=states,
        digest=digest.hexdigest(),
    )


def _states(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of the last change of each file."""
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


class PixelReader(Protocol):
    """Reads regions of level 0 of the channels to segment."""

    def read(self, region: Region) -> NDArray[Any]:
        """(y, x, c) pixels of a region."""

    def close(self) -> None:
        """Gives back what it holds."""


class SlideReader:
    """Reads regions of a slide. Open it in the process that reads; several threads may share one.

    Args:
        slide: As returned by `open_slide`, here or in another process.

    Raises:
        SlideGoneError: The file can't be opened, or isn't the one that was inspected.

    Example:
        >>> with SlideReader(open_slide("slide.svs")) as reader:  # doctest: +SKIP
        ...     image = reader.read(Region(0, 0, 512, 512))
    """

    def __init__(self, slide: Slide) -> None:
        self._file = one_line_name(slide.path)
        self._slide = slide
        try:
            with errors_as_slide_errors(self._file, "can't be opened", "see that it is there and can be read"):
                self._source = _open_source(slide.path, self._file, slide.series)
                try:
                    self._check_unchanged()
                except BaseException:
                    self.close()
                    raise
        except SlideError as error:
            raise SlideGoneError(str(error)) from error

    def _check_unchanged(self) -> None:
        """Refuses another file than the one that was inspected. Asked of an open file: what replaces it later isn't read.

        Raises:
            SlideError: It has changed, or was replaced, even by one of the same shape.
        """
        slide, facts = self._slide, self._source.facts
        found = (tuple(shape[3:] for shape in facts.shapes), facts.shapes[0][:3], facts.dtype.name)
        expected = (
            tuple(level.shape for level in slide.levels), (slide.size_t, slide.size_c, slide.size_z), slide.dtype,
        )  # fmt: skip
        if found != expected or _states(facts.identity_files) != slide.identity.files:
            raise SlideError(f"{self._file}: changed since the run was planned; run the same command again")

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives back the file handles; the reader can't be used any more."""
        self._source.close()

    @property
    def slide(self) -> Slide:
        """What is being read."""
        return self._slide

    def tczyx(self, level: int = 0) -> TczyxView:
        """Lazy pixels of one level with axes t, c, z, y, x, whatever their order in the file.

        Coarser levels of an OME-Zarr may have fewer focal planes than level 0.
        """
        if not 0 <= level < len(self._slide.levels):
            raise IndexError(f"level {level} of {len(self._slide.levels)}")
        return self._source.view(level)

    def read(self, region: Region, level: int = 0, channels: Sequence[int] | None = None) -> NDArray[Any]:
        """Reads a rectangle of the time point and focal plane that the settings chose.

        Args:
            region: Pixels of `level`, inside it.
            level: 0 is the finest.
            channels: Indices; those that the settings chose by default.

        Returns:
            (y, x, c) array of type `slide.dtype`, C-contiguous.

        Raises:
            SlideError: The pixels can't be decoded; the message names file, level and region.
            IndexError: There is no such level, region or channel.
        """
        return np.ascontiguousarray(self.read_planes(region, level, channels).transpose(1, 2, 0))

    def read_planes(self, region: Region, level: int = 0, channels: Sequence[int] | None = None) -> NDArray[Any]:
        """As `read`, but (c, y, x), in whatever order of memory the file has."""
        view = self.tczyx(level)
        chosen = self._slide.channels if channels is None else tuple(int(channel) for channel in channels)
        _, size_c, size_z, height, width = view.shape
        inside = 0 <= region.y0 < region.y1 <= height and 0 <= region.x0 < region.x1 <= width
        if not inside or not chosen or not all(0 <= channel < size_c for channel in chosen):
            raise IndexError(
                f"{region}, channels {chosen}: not in level {level} of {height} × {width} px, {size_c} channels"
            )
        t, z = self._slide.t, self._slide.z * size_z // self._slide.size_z
        planes: NDArray[Any] = view.fetch(range(t, t + 1), chosen, range(z, z + 1), region)[0, :, 0]
        return planes
