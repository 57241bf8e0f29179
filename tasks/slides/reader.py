"""Owns reading rectangles of the slide that a `Slide` describes, in any process. Only the tiles or chunks of them are read.

Must not import Dask, Prefect or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SlideError, SlideGoneError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_source
from slidesam.tasks.slides.source import (
    ImageChoice,
    Source,
    errors_as_slide_errors,
    missing_as_slide_errors,
    one_line_name,
)


class PixelReader(Protocol):
    """Reads regions of level 0 of the channels to segment."""

    def read(self, region: Region) -> NDArray[Any]:
        """Read the (y, x, c) pixels of a region."""

    def close(self) -> None:
        """Close the files."""


class SlideReader:
    """Reads regions of a slide. Open it in the process that reads; several threads may share one.

    Args:
        slide: As returned by `inspect_slide`, here or in another process.

    Raises:
        SlideGoneError: The file can't be opened, or isn't the one that was inspected.

    Example:
        >>> with SlideReader(inspect_slide("slide.svs")) as reader:  # doctest: +SKIP
        ...     image = reader.read(Region(0, 0, 512, 512))
    """

    def __init__(self, slide: Slide) -> None:
        self._file = one_line_name(slide.path)
        self._slide = slide
        try:
            with errors_as_slide_errors(self._file, "can't be opened", "check that it exists and can be read"):
                self._source = self._open()
        except SlideError as error:
            raise SlideGoneError(str(error)) from error

    def _open(self) -> Source:
        """Open the slide, and refuse it if it isn't the one that was inspected.

        The open file is compared: a file that replaces it later isn't read.

        Raises:
            SlideError: It isn't there, has changed, or was replaced, even by one of the same shape.
        """
        slide = self._slide
        spec = (
            slide.source
            or inspect_source(slide.path, self._file, ImageChoice(slide.series, slide.pages, slide.is_rgb))[1]
        )
        with missing_as_slide_errors(slide.path, self._file):
            source = spec.open(slide.path)
        try:
            if source.states() != slide.identity.files:
                raise SlideError(f"{self._file}: changed since the run was planned; run the same command again")
        # Whatever it is, the file is closed and the error passed on.
        except BaseException:
            source.close()
            raise
        self._shapes = spec.shapes
        return source

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the reader can't be used any more."""
        self._source.close()

    @property
    def slide(self) -> Slide:
        """The slide that is read."""
        return self._slide

    def fetch(self, level: int, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
        """Read pixels of any planes, whatever the order of axes in the file.

        Args:
            level: 0 is the finest. Coarser levels of an OME-Zarr may have fewer focal planes than level 0.
            ts: Time points.
            cs: Channels, in any order.
            zs: Focal planes.
            region: Pixels of the level, inside it.

        Returns:
            (t, c, z, y, x) array of type `slide.dtype`.

        Raises:
            SlideError: The pixels can't be decoded; the message names file, level and region.
            IndexError: There is no such level, region or plane.
        """
        if not 0 <= level < len(self._shapes):
            raise IndexError(f"level {level} of {len(self._shapes)}")
        size_t, size_c, size_z, height, width = self._shapes[level]
        is_inside = 0 <= region.y0 < region.y1 <= height and 0 <= region.x0 < region.x1 <= width
        planes = ((ts, size_t), (cs, size_c), (zs, size_z))
        if not is_inside or not all(indices and 0 <= min(indices) <= max(indices) < size for indices, size in planes):
            raise IndexError(
                f"{region}, channels {tuple(cs)}, time points {ts}, planes {zs}: not in level {level} of {height} × {width} px, "
                f"{size_c} channels, {size_t} time points, {size_z} planes"
            )
        action = f"level {level}, rows {region.y0}-{region.y1}, columns {region.x0}-{region.x1} can't be decoded"
        with errors_as_slide_errors(self._file, action, "the file is damaged there, get it again or leave it out"):
            return self._source.fetch(level, ts, cs, zs, region)

    def read(self, region: Region, level: int = 0, channels: Sequence[int] | None = None) -> NDArray[Any]:
        """Read a rectangle of the time point and focal plane that the settings chose.

        Args:
            region: Pixels of `level`, inside it.
            level: 0 is the finest.
            channels: Indices; by default those that the settings chose.

        Returns:
            (y, x, c) array of type `slide.dtype`, C-contiguous.

        Raises:
            SlideError: The pixels can't be decoded; the message names file, level and region.
            IndexError: There is no such level, region or channel.
        """
        return np.ascontiguousarray(self.read_planes(region, level, channels).transpose(1, 2, 0))

    def read_planes(self, region: Region, level: int = 0, channels: Sequence[int] | None = None) -> NDArray[Any]:
        """Read as `read` does, but return (c, y, x) in the file's order of memory."""
        if not 0 <= level < len(self._shapes):
            raise IndexError(f"level {level} of {len(self._shapes)}")
        indices = self._slide.channels if channels is None else tuple(int(channel) for channel in channels)
        t, z = self._slide.t, self._slide.z * self._shapes[level][2] // self._slide.size_z
        return self.fetch(level, range(t, t + 1), indices, range(z, z + 1), region)[0, :, 0]
