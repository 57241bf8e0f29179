"""Slides of the TIFF family: Aperio SVS, OME-TIFF, ImageJ, generic pyramids and what else tifffile knows.

tifffile parses the file and decodes tiles; which tiles are read, and whether the file can be trusted, is decided here.

1. `_check_header` and `_directories` refuse what is no TIFF, or whose directories run in a circle, before tifffile does.
2. `slide_tiff_levels` finds where in the file each plane, tile and strip lies (`slide_tiff_layout`), and refuses what is cut.
3. `slide_tiff_facts` gathers pixel size, channel names and what else the metadata say.
4. `TiffSource` reads regions. Decoding runs in the calling thread, without locks.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError, SlideError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.ome_xml import MAX_PLANES, OmeDocument, read_ome_xml
from slidesam.tasks.slides.source import SourceFacts, TczyxView, errors_as_slide_errors, one_line_name
from slidesam.tasks.slides.tiff.layout import Segment, TiffLevel
from slidesam.tasks.slides.tiff.levels import read_levels
from slidesam.tasks.slides.tiff.metadata import read_facts

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_DIRECTORIES = 10**6
_ROWS_BYTES = 2**24  # of an uncompressed strip, read at once
_OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the image itself; run `git lfs pull`",
    b"\x89PNG": "is a PNG image, not a slide; save it as TIFF",
    b"\xff\xd8\xff": "is a JPEG image, not a slide; save it as TIFF",
    b"\x89HDF": "is an HDF5 file, which isn't read; convert it to OME-TIFF or OME-Zarr",
    b"ZISRAWFILE": "is a Zeiss CZI file, which isn't read; convert it with bioformats2raw",
    b"PK\x03\x04": "is a ZIP archive; unpack it first",
}


class _QuietLog(logging.Filter):
    """Keeps what tifffile logs while this thread inspects a slide off the terminal; other users of it aren't affected."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        messages: list[str] | None = getattr(self._local, "messages", None)
        if messages is None:
            return True
        messages.append(record.getMessage())
        return False

    @contextmanager
    def captured(self) -> Iterator[list[str]]:
        """Collects this thread's messages for as long as it is open."""
        before = getattr(self._local, "messages", None)
        messages: list[str] = []
        self._local.messages = messages
        try:
            yield messages
        finally:
            self._local.messages = before


_QUIET = _QuietLog()
logging.getLogger("tifffile").addFilter(_QUIET)


class TiffSource:
    """An open TIFF file, one image of it.

    Args:
        path: The file.
        series: Number of the image in it.

    Raises:
        SlideError: It can't be read, or says what can't be true.
        SettingsError: It has no image of that number.
    """

    def __init__(self, path: Path, series: int) -> None:
        self._file = one_line_name(path)
        _check_header(path, self._file)
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            with (
                _QUIET.captured(),
                errors_as_slide_errors(
                    self._file, "isn't a TIFF file that can be read", "get it again or leave it out"
                ),
                tifffile.TiffFile(path) as tiff,
            ):
                self.facts, self._levels = _inspected(tiff, path, self._file, series)
        except BaseException:
            self.close()
            raise

    def view(self, level: int) -> TczyxView:
        """Lazy pixels of one level."""
        layout = self._levels[level]

        def fetch(ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
            with _QUIET.captured():
                return self._fetch(layout, ts, cs, zs, region)

        return TczyxView(self._file, level, layout.shape, layout.dtype, layout.chunks, fetch)

    def remarks(self) -> list[str]:
        """Nothing more: all has been checked when it was opened."""
        return []

    def missing_chunks(self) -> int:
        """None: a file that is cut short is refused, and tiles that a sparse one leaves out are as it says."""
        return 0

    def close(self) -> None:
        """Gives back the file handle."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fetch(self, layout: TiffLevel, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
        height, width = region.shape
        # Channels last in memory: that is how RGB lies in the file, and how segmenters want it.
        out = np.empty((len(ts), len(zs), height, width, len(cs)), layout.dtype)
        for i, t in enumerate(ts):
            for j, z in enumerate(zs):
                for place, samples in layout.planes(t, cs, z):
                    for segment in layout.segments(place, region):
                        self._paste(layout, segment, region, samples, out[i, j])
        return out.transpose(0, 4, 1, 2, 3)

    def _paste(
        self, layout: TiffLevel, segment: Segment, region: Region, samples: Sequence[tuple[int, int]], out: NDArray[Any]
    ) -> None:
        """Copies what `region` has of one tile or strip to (y, x, c) `out`; `samples` pairs out's channels with the file's."""
        part = segment.region & region
        window = out[part.relative_to(region).slices]
        if segment.is_empty:
            window[:, :, [channel for channel, _ in samples]] = layout.fill
            return
        if layout.is_raw:
            pixels = self._raw_rows(layout, segment, part)
        else:
            data = self._bytes(segment.offset, segment.size)
            pixels = layout.decoded(data, segment)[part.relative_to(segment.region).slices]
        if [sample for _, sample in samples] == list(range(pixels.shape[2])) and len(samples) == out.shape[2]:
            window[...] = pixels
            return
        for channel, sample in samples:
            window[:, :, channel] = pixels[:, :, sample]

    def _raw_rows(self, layout: TiffLevel, segment: Segment, part: Region) -> NDArray[Any]:
        """Reads part of an uncompressed strip, which may be as large as the image: only its rows, or pieces of them."""
        pixel = layout.samples * layout.dtype.itemsize
        strip_width = segment.region.shape[1]
        height, width = part.shape
        out = np.empty((height, width, layout.samples), layout.dtype.newbyteorder(layout.byteorder))
        whole_rows = 2 * width >= strip_width
        at_once = max(1, _ROWS_BYTES // (strip_width * pixel)) if whole_rows else 1
        x0 = 0 if whole_rows else part.x0
        row_pixels = strip_width if whole_rows else width
        for y in range(0, height, at_once):
            rows = min(at_once, height - y)
            offset = segment.offset + ((part.y0 - segment.region.y0 + y) * strip_width + x0) * pixel
            data = self._bytes(offset, rows * row_pixels * pixel)
            block = np.frombuffer(data, out.dtype).reshape(rows, row_pixels, layout.samples)
            out[y : y + rows] = block[:, part.x0 - x0 : part.x1 - x0]
        return out

    def _bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"{size} bytes expected at byte {offset}, {len(data)} found")
        return data


def _check_header(path: Path, file: str) -> None:
    with path.open("rb") as stream:
        start = stream.read(32)
    if not start:
        raise SlideError(f"{file}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF_MAGICS:
        return
    for magic, what in _OTHER_FILES.items():
        if start.startswith(magic):
            raise SlideError(f"{file}: {what}")
    raise SlideError(
        f"{file}: isn't a TIFF file (it starts with {start[:4]!r}); slides are read from SVS, TIFF, OME-TIFF and OME-Zarr"
    )


def _inspected(
    tiff: tifffile.TiffFile, path: Path, file: str, series_number: int
) -> tuple[SourceFacts, tuple[TiffLevel, ...]]:
    count, cut = _directories(tiff, file)
    ome = _ome(tiff, file, path.name)
    all_series = tiff.series
    if not all_series:
        raise SlideError(
            f"{file}: holds no image; it is {'cut short, copy it again' if cut else 'damaged, get it again'}"
        )
    if series_number >= len(all_series):
        last = len(all_series) - 1
        raise SettingsError(f"setting slide.series: {file} has images 0 to {last}, not {series_number}")
    series = all_series[series_number]
    levels, warnings = read_levels(series, count, file, path.stat().st_size)
    if cut:
        warnings.append(
            "the file is cut short after its last directory; smaller levels or further images may be missing"
        )
    facts = read_facts(tiff, series, levels, ome, warnings, path)
    return facts, levels


def _directories(tiff: tifffile.TiffFile, file: str) -> tuple[int, bool]:
    """Number of image file directories, and whether their chain ends outside the file.

    Raises:
        SlideError: They run in a circle, or are too many to be true.
    """
    if not tiff.pages:
        return 0, True
    layout, stream = tiff.tiff, tiff.filehandle
    size, offset = stream.size, int(tiff.pages.first.offset)
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > MAX_DIRECTORIES:
            raise SlideError(f"{file}: its image directories run in a circle; the file is damaged, get it again")
        seen.add(offset)
        try:
            stream.seek(offset)
            tags = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
            stream.seek(offset + layout.tagnosize + tags * layout.tagsize)
            offset = struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]
        except (struct.error, OSError):
            return len(seen), True
        if offset >= size:
            return len(seen), True
    return len(seen), False


def _ome(tiff: tifffile.TiffFile, file: str, name: str) -> OmeDocument | None:
    """The OME-XML of the file, none where it has none that can be parsed.

    Raises:
        SlideError: It says that planes are in other files, or declares more of them than can be.
    """
    text = tiff.ome_metadata
    if not text:
        return None
    try:
        ome = read_ome_xml(text, name)
    except ValueError:
        return None
    if ome.other_files:
        shown = in_one_line(", ".join(ome.other_files[:3])) + (", ..." if len(ome.other_files) > 3 else "")
        raise SlideError(
            f"{file}: is one of several files of a stack (others: {shown}), whose planes would be lost; "
            "join them first with bfconvert, or convert them to OME-Zarr with bioformats2raw"
        )
    if ome.span > MAX_PLANES:
        raise SlideError(f"{file}: declares {ome.span} planes; the file is damaged, get it again")
    return ome
