"""Owns what all slide files have in common: facts, reading, and the limits that are checked before any pixel is read.

`tiff` and `zarr` build on this, `inspect` and `reader` use them; nothing here knows a file format.

1. `SourceFacts` holds what a file says about one image, in TCZYX order.
2. `SourceSpec` describes how to open the image, in any process; `Source` is the open image.
3. `check_level`, `check_dtype` and `check_chunk` refuse sizes that can't be true or would not fit into memory.
4. `errors_as_slide_errors` turns any error of a library into one line for a person.
"""

from __future__ import annotations

import errno
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.errors import SlideAwayError, SlideError, SlidesamError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.pixel_size import PixelSize

MAX_PIXELS = 2**40  # of one level; the largest slides have some 2**37
MAX_CHUNK_BYTES = 2**31  # of one decoded tile, strip or chunk
MAX_CHANNELS = 4096
MAX_LIBRARY_MESSAGE = 160  # characters of a library's own message
MAX_PLANES = 2**31  # t × z
# From here on a value says that there is none, as inf and NaN do; it would ruin what is measured of a slide.
NO_NUMBER = 1e30
RGB_NAMES = ("red", "green", "blue")

Shape5: TypeAlias = tuple[int, int, int, int, int]
Pages: TypeAlias = Literal["channels", "z"]
FileState: TypeAlias = tuple[int, int]  # size in bytes, time of the last change in ns


class Display(NamedTuple):
    """Colour and display window of a channel, if the file has them.

    Attributes:
        colour: Six hexadecimal digits, red, green, blue.
        window: Values that are shown black and fully bright.
    """

    colour: str | None = None
    window: tuple[float, float] | None = None


class ImageChoice(NamedTuple):
    """Which pixels of a file the settings ask for, as far as that decides how the file is read.

    Attributes:
        series: Number of the image; none = the one that is the slide.
        pages: What pages are of which the file doesn't say it; none = decide by their names.
        is_rgb: Whether the first three channels are red, green and blue; none = decide by what the file says, or looks like.
    """

    series: int | None = None
    pages: Pages | None = None
    is_rgb: bool | None = None


@dataclass(frozen=True)
class SourceFacts:
    """Facts that a file states about one of its images.

    Attributes:
        format: Name of the file's format.
        series: Number of this image.
        n_series: Number of images in the file.
        dtype: Pixel type of what is read: native byte order, uint8 for booleans.
        shapes: Sizes (t, c, z, y, x) of each level, finest first.
        chunks: Sizes (t, c, z, y, x) of what is decoded at once, for each level.
        pixel_size: What the file credibly states about the size of its pixels.
        channel_names: One per channel.
        is_rgb: Whether the channels are red, green and blue; none if the file leaves it open.
        pages: What pages were taken for of which the file doesn't say it; none otherwise.
        warnings: Warnings for people, one sentence each.
        identity_files: Files whose content identifies the slide.
        display: One per channel.
        missing_chunks: Number of chunks, tiles or strips that are missing and read as background; 0 if they aren't counted.
        missing_digest: Digest of which of them are missing, on any level; empty if none are.
        can_have_gaps: Whether more may not have been scanned: there is an alpha channel or a transparency mask, or chunks can be
            missing that aren't counted.
        whole_levels: Per level, whether it shows all that level 0 shows; empty if all do.
        origin: Where the file says that the centre of the first pixel lies, in pixels of level 0 along y and x.
    """

    format: str
    series: int
    n_series: int
    dtype: np.dtype[Any]
    shapes: tuple[Shape5, ...]
    chunks: tuple[Shape5, ...]
    pixel_size: PixelSize | None
    channel_names: tuple[str, ...]
    is_rgb: bool | None
    warnings: tuple[str, ...]
    identity_files: tuple[Path, ...]
    display: tuple[Display, ...]
    missing_chunks: int = 0
    missing_digest: str = ""
    can_have_gaps: bool = False
    whole_levels: tuple[bool, ...] = ()
    origin: tuple[float, float] = (0.0, 0.0)
    pages: Pages | None = None


class SourceSpec(BaseModel, ABC):
    """Description by which an image is opened without another inspection; small, frozen and picklable."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: Literal["tiff", "zarr"]
    """File of the TIFF family, or Zarr folder."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[Shape5, ...]:
        """Sizes (t, c, z, y, x) of each level, finest first."""

    @abstractmethod
    def with_background(self, is_rgb: bool) -> Self:
        """Return the description by which missing tiles or chunks read as background.

        Args:
            is_rgb: Whether background is white rather than dark.
        """

    @abstractmethod
    def open(self, path: Path) -> Source:
        """Open the image without inspecting it.

        Args:
            path: The slide's file or folder.

        Raises:
            OSError: It can't be opened.
        """


class Source(Protocol):
    """An open slide file. Several threads may share one."""

    def fetch(self, level: int, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
        """Read pixels.

        Args:
            level: Which level, 0 is the finest.
            ts: Time points.
            cs: Channels, in any order.
            zs: Focal planes.
            region: Pixels of the level, inside it.

        Returns:
            (t, c, z, y, x) array of the image's pixel type, in native byte order.

        Raises:
            Exception: They can't be decoded.
        """

    def states(self) -> tuple[FileState, ...]:
        """Return the present states of the files that identify the slide.

        Raises:
            OSError: A file is missing, or its state can't be read.
        """

    def close(self) -> None:
        """Close the files."""


def find_white(dtype: np.dtype[Any], bits: int | None = None) -> int | float:
    """Return the value of white in a bright-field image.

    Args:
        dtype: Of the pixels.
        bits: How many of their bits are used; none = all.

    Example:
        >>> find_white(np.dtype("uint8")), find_white(np.dtype("uint16"), 12), find_white(np.dtype("float32"))
        (255, 4095, 1.0)
    """
    if dtype.kind == "f":
        return 1.0
    most = int(np.iinfo(dtype).max)
    return most if bits is None else min(most, 2 ** (bits - (dtype.kind == "i")) - 1)


def digest_missing(levels: Iterable[NDArray[np.bool_] | None]) -> str:
    """Compute a digest of which chunks, tiles or strips are missing.

    Args:
        levels: Per level, finest first, bool per chunk, whether it is missing; none if that isn't known.

    Returns:
        Hexadecimal digits; empty if none are missing.
    """
    missing = [(number, chunks) for number, chunks in enumerate(levels) if chunks is not None and chunks.any()]
    digest = hashlib.blake2b(digest_size=16)
    for number, chunks in missing:
        digest.update(b"%d:%d\0" % (number, chunks.size) + np.packbits(chunks).tobytes())
    return digest.hexdigest() if missing else ""


def credible_window(start: object, end: object) -> tuple[float, float] | None:
    """Return the ends of a display window, or none if they aren't two ascending numbers."""
    try:
        low, high = float(start), float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def file_states(files: Sequence[Path]) -> tuple[FileState, ...]:
    """Read the state of each file.

    Raises:
        OSError: A file is missing, or its state can't be read.
    """
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


@contextmanager
def errors_as_slide_errors(file: str, problem: str, advice: str) -> Iterator[None]:
    """Turn any error of a library into a `SlideError` "<file>: <problem> (<its message>); <advice>"."""
    try:
        yield
    except SlidesamError:
        raise
    except PermissionError as error:
        # The permissions of its folders can't be seen on the file.
        raise SlideAwayError(f"{file}: this user may not read it; ask its owner for permission") from error
    # tifffile, zarr and their codecs raise what they like on a damaged file.
    except Exception as error:
        kind = SlideAwayError if _is_passing(error) else SlideError
        raise kind(f"{file}: {problem} ({in_one_line(error, MAX_LIBRARY_MESSAGE)}); {advice}") from error


@contextmanager
def missing_as_slide_errors(path: Path, file: str) -> Iterator[None]:
    """Turn the errors of opening a file that is missing, or that may not be read, into a `SlideError`."""
    try:
        yield
    except FileNotFoundError:
        raise SlideError(f"{file}: isn't there ({in_one_line(str(path))}); correct the path") from None
    except PermissionError:
        raise SlideError(f"{file}: this user may not read it; ask its owner for permission") from None


# Errors of a file server that doesn't answer, or of a process with too many open files.
_PASSING_ERRORS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOTCONN,
}  # fmt: skip


def _is_passing(error: Exception) -> bool:
    """Tell whether reading may succeed at another time, or on another machine."""
    return isinstance(error, MemoryError | ImportError) or (
        isinstance(error, OSError) and error.errno in _PASSING_ERRORS
    )


def one_line_name(path: Path) -> str:
    """Return the file's name for the start of a message; for an image inside a Zarr store, the path from the store.

    Example:
        >>> one_line_name(Path("scans/plate.zarr/A/1/0"))
        'plate.zarr/A/1/0'
    """
    parts = path.parts
    store = next((index for index, part in enumerate(parts) if part.lower().endswith(".zarr")), len(parts) - 1)
    return in_one_line("/".join(parts[store:]) or str(path), 255)


def check_level(file: str, level: int, shape: Sequence[int]) -> None:
    """Refuse sizes that no slide has.

    Args:
        file: Name for the message.
        level: Number for the message.
        shape: Declared sizes (t, c, z, y, x).

    Raises:
        SlideError: A size is zero, or so large that the file must be damaged.
    """
    t, c, z, y, x = shape
    if min(shape) < 1:
        raise SlideError(
            f"{file}: level {level} is empty ({y} × {x} pixels, {c} channels); the file is damaged, get it again"
        )
    if y * x > MAX_PIXELS:
        raise SlideError(f"{file}: level {level} declares {y} × {x} pixels; the file is damaged, get it again")
    if c > MAX_CHANNELS or t * z > MAX_PLANES:
        raise SlideError(
            f"{file}: declares {t} time points, {c} channels and {z} planes; the file is damaged, get it again"
        )


def check_dtype(file: str, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """Return the pixel type of what is read: native byte order, uint8 for booleans.

    Example:
        >>> check_dtype("a.tif", np.dtype(">u2")), check_dtype("a.tif", np.dtype(bool))
        (dtype('uint16'), dtype('uint8'))

    Raises:
        SlideError: The type isn't one of real numbers.
    """
    if dtype is None or dtype.kind not in "biuf":
        raise SlideError(
            f"{file}: pixels are {dtype or 'of an unknown type'}, not real numbers; export as 8 or 16 bit and try again"
        )
    # By name, because C has several types of one size, and zarr knows only the one to which numpy gives the name.
    return np.dtype("uint8" if dtype.kind == "b" else dtype.name)


def check_chunk(file: str, level: int, noun: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuse tiles, strips and chunks that would not fit into a worker's memory.

    Raises:
        SlideError: Decoded, one takes more than 2 GiB.
    """
    size = math.prod(shape) * itemsize
    if size > MAX_CHUNK_BYTES:
        raise SlideError(
            f"{file}: level {level} is stored in {noun}s of {size / 2**30:.0f} GiB each, too large to read one at a time; "
            "convert it to a tiled OME-TIFF or OME-Zarr first"
        )


def downsample(shape: tuple[int, int], finest: tuple[int, int]) -> tuple[float, float]:
    """Compute by which factor a level is coarser than the finest one, per axis; a whole number if rounding explains the rest.

    Example:
        >>> downsample((1483, 555), (2967, 2220))
        (2.0, 4.0)
    """

    def factor(small: int, large: int) -> float:
        ratio = large / small
        rounded = round(ratio)
        return float(rounded) if small in (large // rounded, -(-large // rounded)) else ratio

    return factor(shape[0], finest[0]), factor(shape[1], finest[1])
