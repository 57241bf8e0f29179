"""What every kind of slide file has in common: its facts, reading from it, and the limits checked before any pixel is read.

`tiff` and `zarr` build on this, `inspect` and `reader` use them; nothing here knows a file format.

1. `SourceFacts` is what a file says of one image, in TCZYX order.
2. `SourceSpec` is what opening the image again needs, in any process; `Source` is the image opened.
3. `check_level`, `check_dtype`, `check_chunk` refuse what can't be true or would not fit into memory.
4. `errors_as_slide_errors` turns whatever a library raises into one line for a person.
"""

from __future__ import annotations

import errno
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.errors import SlideAwayError, SlideError, SlidesamError, in_one_line
from slidesam.tasks.grid import Region

MAX_PIXELS = 2**40  # of one level; the largest slides have some 2**37
MAX_CHUNK_BYTES = 2**31  # of one decoded tile, strip or chunk
MAX_CHANNELS = 4096
_WORDS_OF_LIBRARIES = 160  # characters of a library's own message
MAX_PLANES = 2**31  # t × z
CREDIBLE_MPP = (0.01, 100.0)  # µm per pixel; 72 dpi would be 353
RGB_NAMES = ("red", "green", "blue")

Shape5: TypeAlias = tuple[int, int, int, int, int]
FileState: TypeAlias = tuple[int, int]  # size in bytes, time of the last change in ns


class Display(NamedTuple):
    """How a file wants a channel shown, as far as it says.

    Attributes:
        colour: Six hexadecimal digits, red, green, blue.
        window: The values that are shown black and fully bright.
    """

    colour: str | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class SourceFacts:
    """What a file says about one of its images.

    Attributes:
        format: Kind of file in words.
        n_series: Number of images in the file.
        dtype: Pixel type as handed out: native byte order, uint8 for truth values.
        shapes: Sizes (t, c, z, y, x) of each level, finest first.
        chunks: Of each level, what is decoded at once, as (t, c, z, y, x).
        mpp: Pixel size (y, x) in µm where the file states a credible one.
        channel_names: One per channel.
        is_rgb: Whether the channels are red, green and blue.
        warnings: What a person should know, one sentence each.
        identity_files: Files whose content stands for the whole: all that decides what pixels mean.
        display: One per channel.
        missing_chunks: Chunks of the finest level that aren't there and read as empty, 0 where they aren't counted.
    """

    format: str
    n_series: int
    dtype: np.dtype[Any]
    shapes: tuple[Shape5, ...]
    chunks: tuple[Shape5, ...]
    mpp: tuple[float, float] | None
    channel_names: tuple[str, ...]
    is_rgb: bool
    warnings: tuple[str, ...]
    identity_files: tuple[Path, ...]
    display: tuple[Display, ...]
    missing_chunks: int = 0


class SourceSpec(BaseModel, ABC):
    """What opening an image again needs, found by inspecting it once; small, frozen and picklable."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: Literal["tiff", "zarr"]
    """Whether it is a file of the TIFF family or a Zarr folder."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[Shape5, ...]:
        """Sizes (t, c, z, y, x) of each level, finest first."""

    @abstractmethod
    def open(self, path: Path) -> Source:
        """Open the image, inspecting nothing.

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
        """Return the states of the files that stand for the whole, as they are now.

        Raises:
            OSError: One isn't there, or can't be looked at.
        """

    def close(self) -> None:
        """Give back the file handles."""


def credible_window(start: object, end: object) -> tuple[float, float] | None:
    """The ends of a display window, or none where they aren't two ascending numbers."""
    try:
        low, high = float(start), float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def file_states(files: Sequence[Path]) -> tuple[FileState, ...]:
    """Read the state of each file.

    Raises:
        OSError: One isn't there, or can't be looked at.
    """
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


@contextmanager
def errors_as_slide_errors(file: str, what: str, advice: str) -> Iterator[None]:
    """Turns any error of a library into a `SlideError` "<file>: <what> (<its words>); <advice>"."""
    try:
        yield
    except SlidesamError:
        raise
    except PermissionError as error:
        # Whom its folders let in isn't to be seen on the file.
        raise SlideAwayError(
            f"{file}: may not be read by this user; ask its owner for permission to read it"
        ) from error
    except Exception as error:
        kind = SlideAwayError if _is_passing(error) else SlideError
        raise kind(f"{file}: {what} ({in_one_line(error, _WORDS_OF_LIBRARIES)}); {advice}") from error


@contextmanager
def missing_as_slide_errors(path: Path, file: str) -> Iterator[None]:
    """Turns the errors of opening a file that isn't there, or may not be read, into a `SlideError` in words."""
    try:
        yield
    except FileNotFoundError:
        raise SlideError(f"{file}: isn't there ({in_one_line(str(path))}); correct the path") from None
    except PermissionError:
        raise SlideError(f"{file}: may not be read by this user; ask its owner for permission to read it") from None


# Of a file server that doesn't answer, or a process that has too much open.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOTCONN,
}  # fmt: skip


def _is_passing(error: Exception) -> bool:
    """Whether the same file may be read another time, or elsewhere."""
    return isinstance(error, MemoryError | ImportError) or (isinstance(error, OSError) and error.errno in _PASSING)


def one_line_name(path: Path) -> str:
    """The file's name, for the start of a message; of an image inside a Zarr store the way from the store on.

    Example:
        >>> one_line_name(Path("scans/plate.zarr/A/1/0"))
        'plate.zarr/A/1/0'
    """
    parts = path.parts
    store = next((at for at, part in enumerate(parts) if part.lower().endswith(".zarr")), len(parts) - 1)
    return in_one_line("/".join(parts[store:]) or str(path), 255)


def are_rgb(names: Sequence[str]) -> bool:
    """Whether channels of these names are red, green and blue."""
    return tuple(name.strip().lower() for name in names) in (RGB_NAMES, ("r", "g", "b"))


def check_level(file: str, level: int, shape: Sequence[int]) -> None:
    """Refuses sizes that no slide has.

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
    """The dtype in which pixels are handed out: in native byte order, uint8 for truth values.

    Example:
        >>> check_dtype("a.tif", np.dtype(">u2")), check_dtype("a.tif", np.dtype(bool))
        (dtype('uint16'), dtype('uint8'))

    Raises:
        SlideError: It isn't made of real numbers.
    """
    if dtype is None or dtype.kind not in "biuf":
        raise SlideError(
            f"{file}: pixels are {dtype or 'of an unknown type'}, not real numbers; export as 8 or 16 bit and try again"
        )
    # By name, since C has several types of one size: of those, zarr knows only the one that numpy means by the name.
    return np.dtype("uint8" if dtype.kind == "b" else dtype.name)


def check_chunk(file: str, level: int, what: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuses tiles, strips and chunks that would not fit into a worker's memory.

    Raises:
        SlideError: Decoded, one takes more than 2 GiB.
    """
    size = math.prod(shape) * itemsize
    if size > MAX_CHUNK_BYTES:
        raise SlideError(
            f"{file}: level {level} is stored in {what}s of {size / 2**30:.0f} GiB each, too large to read one at a time; "
            "convert it to a tiled OME-TIFF or OME-Zarr first"
        )


def credible_mpp(y: float | None, x: float | None, said_by: str) -> tuple[tuple[float, float] | None, list[str]]:
    """Pixel size (y, x) in µm if it can be one, and otherwise why not.

    Example:
        >>> credible_mpp(0.25, 0.25, "resolution tags")
        ((0.25, 0.25), [])
        >>> credible_mpp(353.0, 353.0, "resolution tags")[0] is None
        True
    """
    if y is None or x is None:
        return None, []
    low, high = CREDIBLE_MPP
    if not all(math.isfinite(size) and low <= size <= high for size in (y, x)):
        return None, [f"pixel size of {y:g} × {x:g} µm in the {said_by} isn't credible and isn't used"]
    return (float(y), float(x)), []


def downsample(shape: tuple[int, int], finest: tuple[int, int]) -> tuple[float, float]:
    """How much coarser a level is than the finest one, per axis; whole where rounding explains the rest.

    Example:
        >>> downsample((1483, 555), (2967, 2220))
        (2.0, 4.0)
    """

    def factor(small: int, large: int) -> float:
        ratio = large / small
        whole = round(ratio)
        return float(whole) if small in (large // whole, -(-large // whole)) else ratio

    return factor(shape[0], finest[0]), factor(shape[1], finest[1])
