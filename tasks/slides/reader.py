"""Reads rectangles of the slide that a `Slide` describes, in any process; only the tiles, strips or chunks that they touch.

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
from slidesam.tasks.slides.inspect import file_states, open_source
from slidesam.tasks.slides.source import TczyxView, errors_as_slide_errors, one_line_name


class PixelReader(Protocol):
    """Reads regions of level 0 of the channels to segment."""

    def read(self, region: Region) -> NDArray[Any]:
        """(y, x, c) pixels of a region."""

    def close(self) -> None:
        """Gives back what it holds."""


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
            with errors_as_slide_errors(self._file, "can't be opened", "see that it is there and can be read"):
                self._source = open_source(slide.path, self._file, slide.series)
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
        if found != expected or file_states(facts.identity_files) != slide.identity.files:
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
