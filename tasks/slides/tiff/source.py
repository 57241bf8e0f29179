"""Owns reading TIFF files by the description that inspection made; no directory is parsed again.

Tiles are decoded in the calling thread, without locks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.source import FileState, Shape5, SourceSpec
from slidesam.tasks.slides.tiff.layout import Page, Segment, TiffLevel
from slidesam.tasks.slides.tiff.quiet import quiet_tifffile

_ROWS_BYTES = 2**24  # of an uncompressed strip, read at once


class TiffSpec(SourceSpec):
    """Description of an image in a TIFF file: where its levels lie, and how their tiles are decoded."""

    kind: Literal["tiff"] = "tiff"
    levels: tuple[TiffLevel, ...]
    """Levels, finest first."""
    masks: tuple[TiffLevel, ...] = ()
    """Per level, the image that is 0 where the level wasn't scanned; empty if there is none."""

    @property
    def shapes(self) -> tuple[Shape5, ...]:
        """Sizes (t, c, z, y, x) of each level, finest first."""
        return tuple(level.shape for level in self.levels)

    def with_background(self, is_rgb: bool) -> TiffSpec:
        """Return the description by which what wasn't scanned reads as white in bright field, and as 0 otherwise.

        Missing tiles read as the value that the file states, if it isn't 0.
        """
        return self.model_copy(update={"levels": tuple(_lay_over(level, is_rgb) for level in self.levels)})

    def over_zero(self) -> TiffSpec:
        """Return the description by which colours are read as they are stored, however transparent, and missing tiles as 0."""
        levels = tuple(
            level.model_copy(update={"fill": 0, "colour": level.colour.model_copy(update={"alpha": None})})
            for level in self.levels
        )
        return self.model_copy(update={"levels": levels, "masks": ()})

    def open(self, path: Path) -> TiffSource:
        """Open the file."""
        return TiffSource(path, self)


def _lay_over(level: TiffLevel, is_rgb: bool) -> TiffLevel:
    background = level.colour.full if is_rgb else 0.0
    colour = level.colour.model_copy(update={"background": background})
    fill = level.fill or background if is_rgb else level.fill
    return level.model_copy(update={"fill": fill, "colour": colour})


class TiffSource:
    """An open TIFF file, one image of it. Several threads may share one.

    Args:
        path: The file.
        spec: Description from the inspection.

    Raises:
        OSError: It can't be opened.
    """

    def __init__(self, path: Path, spec: TiffSpec) -> None:
        self._spec = spec
        self._masks = TiffSource(path, TiffSpec(levels=spec.masks)) if spec.masks else None
        # A pipe of that name would be waited for.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # Made for a level or page when they are first needed.
        self._decoder = cache(lambda level: spec.levels[level].codec.make_decoder())
        self._page = cache(lambda level, number: spec.levels[level].load_page(number, self._read_bytes))

    def states(self) -> tuple[FileState, ...]:
        """Return size and time of the last change of the open file."""
        status = os.fstat(self._descriptor)
        return ((status.st_size, status.st_mtime_ns),)

    def close(self) -> None:
        """Close the file."""
        if self._masks is not None:
            self._masks.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fetch(self, level: int, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
        """Read (t, c, z, y, x) pixels."""
        layout = self._spec.levels[level]
        height, width = region.shape
        # Channels last in memory, as RGB is stored in files and as segmenters take it.
        out = np.empty((len(ts), len(zs), height, width, len(cs)), layout.dtype)
        read = self._read_converted if layout.colour.is_converted else self._read_stored
        with quiet_tifffile():
            for i, t in enumerate(ts):
                for j, z in enumerate(zs):
                    read(level, t, cs, z, region, out[i, j])
        if self._masks is not None:
            is_hidden = self._masks.fetch(level, range(1), [0], range(1), region)[0, 0, 0] == 0
            out[:, :, is_hidden] = layout.fill
        if layout.no_data is not None:
            out[out == out.dtype.type(layout.no_data)] = np.nan
        return out.transpose(0, 4, 1, 2, 3)

    def _read_converted(
        self, level: int, t: int, channels: Sequence[int], z: int, region: Region, out: NDArray[Any]
    ) -> None:
        """Read channels that have to be computed from all samples of a pixel into (y, x, c) `out`."""
        layout = self._spec.levels[level]
        colour = layout.colour
        for group in {channel // colour.channels for channel in channels}:
            stored = np.empty((*region.shape, colour.samples), layout.stored_dtype)
            samples = range(group * colour.samples, (group + 1) * colour.samples)
            missing = self._read_stored(level, t, samples, z, region, stored)
            pixels = colour.convert(stored)
            for part in missing:
                pixels[part.relative_to(region).slices] = layout.fill
            for number, channel in enumerate(channels):
                if channel // colour.channels == group:
                    out[..., number] = pixels[..., channel % colour.channels]

    def _read_stored(
        self, level: int, t: int, samples: Sequence[int], z: int, region: Region, out: NDArray[Any]
    ) -> list[Region]:
        """Read samples, counted through all channels, into (y, x, c) `out`; return the parts that aren't in the file."""
        layout = self._spec.levels[level]
        missing = []
        for place, numbered_samples in layout.planes(t, samples, z):
            page = self._page(level, place.page)
            for segment in layout.segments(page, place, region):
                self._paste(level, page, segment, region, numbered_samples, out)
                if segment.is_empty:
                    missing.append(segment.region & region)
        return missing

    def _paste(
        self,
        level: int,
        page: Page,
        segment: Segment,
        region: Region,
        samples: Sequence[tuple[int, int]],
        out: NDArray[Any],
    ) -> None:
        """Copy the pixels of a tile or strip inside `region` to (y, x, c) `out`; `samples` pairs its channels with the file's."""
        layout, part = self._spec.levels[level], segment.region & region
        window = out[part.relative_to(region).slices]
        if segment.is_empty:
            window[:, :, [channel for channel, _ in samples]] = layout.fill
            return
        if layout.is_raw:
            pixels = self._read_raw_rows(layout, segment, part)
        else:
            pixels = self._decode(level, page, segment)[part.relative_to(segment.region).slices]
        if [sample for _, sample in samples] == list(range(pixels.shape[2])) and len(samples) == out.shape[2]:
            window[...] = pixels
            return
        for channel, sample in samples:
            window[:, :, channel] = pixels[:, :, sample]

    def _decode(self, level: int, page: Page, segment: Segment) -> NDArray[Any]:
        """Decode a (y, x, sample) array that starts at the segment's first pixel and holds at least its region."""
        data = self._read_bytes(segment.offset, segment.size)
        plane: NDArray[Any] = self._decoder(level)(data, segment.number, page.jpeg_tables)[segment.depth]
        if plane.shape[0] < segment.region.shape[0] or plane.shape[1] < segment.region.shape[1]:
            raise ValueError(f"{plane.shape[0]} × {plane.shape[1]} pixels instead of {segment.region.shape}")
        return plane

    def _read_raw_rows(self, layout: TiffLevel, segment: Segment, part: Region) -> NDArray[Any]:
        """Read part of an uncompressed strip, which may be as large as the image: only its rows, or parts of them."""
        pixel = layout.samples * layout.stored_dtype.itemsize
        strip_width = segment.region.shape[1]
        height, width = part.shape
        out = np.empty((height, width, layout.samples), layout.stored_dtype.newbyteorder(layout.codec.byteorder))
        whole_rows = 2 * width >= strip_width
        n_rows = max(1, _ROWS_BYTES // (strip_width * pixel)) if whole_rows else 1
        x0 = 0 if whole_rows else part.x0
        row_pixels = strip_width if whole_rows else width
        for y in range(0, height, n_rows):
            batch_height = min(n_rows, height - y)
            offset = segment.offset + ((part.y0 - segment.region.y0 + y) * strip_width + x0) * pixel
            data = self._read_bytes(offset, batch_height * row_pixels * pixel)
            block = np.frombuffer(data, out.dtype).reshape(batch_height, row_pixels, layout.samples)
            out[y : y + batch_height] = block[:, part.x0 - x0 : part.x1 - x0]
        return out

    def _read_bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"{size} bytes expected at byte {offset}, {len(data)} found")
        return data
