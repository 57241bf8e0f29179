"""Owns reading the levels of an image from a TIFF file's directories, and checking that the file holds what it declares.

All checks are done on the directories, before any pixel is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.slides.source import NO_NUMBER, Pages, Shape5, check_chunk, check_level
from slidesam.tasks.slides.tiff.codec import Codec
from slidesam.tasks.slides.tiff.colour_rules import ColourError, find_packing, read_colour
from slidesam.tasks.slides.tiff.holes import Holes, find_holes
from slidesam.tasks.slides.tiff.layout import Axes, Page, TiffLevel
from slidesam.tasks.slides.tiff.tables import make_page_spec

MAX_COMPRESSION = 100_000  # decoded bytes per byte of file; a blank canvas reaches 6000
SLOW_SEGMENT_BYTES = 2**28
_ELECTRON_EVENTS = (65000, 65001, 65002)  # compression of EER files only


def read_levels(
    series: tifffile.TiffPageSeries, pages_are: Pages | None, directories: int, file: str, file_size: int
) -> tuple[tuple[TiffLevel, ...], tuple[Holes, ...], list[str]]:
    """Read the layout of all levels of an image, finest first.

    Args:
        series: tifffile's view of the image.
        pages_are: What pages are of which the file doesn't say it.
        directories: Number of directories in the file.
        file: Name for messages.
        file_size: Bytes.

    Returns:
        The levels, what is missing in each, and warnings for people.

    Raises:
        SlideError: The file doesn't hold what it declares.
    """
    remarks: list[str] = []
    levels: list[TiffLevel] = []
    all_holes: list[Holes] = []
    for number, part in enumerate(series.levels):
        try:
            level, pages, colour_remarks = _read_level(part, pages_are, number, directories, file, series.keyframe)
            is_alike = not levels or _has_same_pixels(level, levels[0])
        except ColourError:
            if not levels:
                raise
            is_alike = False
        if not is_alike:
            remarks.append(f"level {number} holds another kind of pixels than the image and isn't used")
            continue
        if levels and not _is_smaller_copy(level.shape, levels[-1].shape):
            remarks.append(f"level {number} and later ones aren't smaller copies of the image and aren't used")
            break
        present = [page for page in pages if page is not None]
        if levels and present and (holes := find_holes(level, number, present)).missing == holes.total:
            remarks.append(f"level {number} holds no data and isn't used")
            continue
        _check_tables(level, pages, part.keyframe, number, series, file, file_size)
        remarks += [*_remarks(level, pages, number), *(colour_remarks if not levels else ())]
        levels.append(level)
        all_holes.append(find_holes(level, number, present))
    return tuple(levels), tuple(all_holes), remarks


def _is_smaller_copy(shape: Shape5, finer: Shape5) -> bool:
    smaller = shape[3] <= finer[3] and shape[4] <= finer[4] and shape[3:] != finer[3:]
    return smaller and shape[:3] == finer[:3]


def _has_same_pixels(level: TiffLevel, finest: TiffLevel) -> bool:
    return level.dtype == finest.dtype and level.is_rgb == finest.is_rgb and level.colour.is_read_like(finest.colour)


def _read_level(
    series: tifffile.TiffPageSeries,
    pages_are: Pages | None,
    number: int,
    directories: int,
    file: str,
    finest: tifffile.TiffPage,
) -> tuple[TiffLevel, list[Page | None], list[str]]:
    """Read the layout of one level, its pages with their tables, and remarks on its colours."""
    page = series.keyframe
    stating = page if "GDAL_NODATA" in page.tags else finest  # GDAL states it for level 0 only
    axes = _find_axes(series, pages_are, number, file)
    sizes = axes.sizes
    _check_codec(page, file)
    colour, remarks = read_colour(page, series.kind, sizes["S"], sizes["C"], file)
    shape = (sizes["T"], sizes["C"] * colour.channels, sizes["Z"], sizes["Y"], sizes["X"])
    check_level(file, number, shape)
    pages, stride = _load_pages(series, axes.planes, directories if number == 0 else None, file)
    level = TiffLevel(
        shape=shape,
        dtype=colour.dtype,
        is_raw=_is_raw(page),
        fill=0 if colour.is_converted else _find_fill(stating),
        no_data=None if colour.is_converted else _find_no_data(stating),
        is_rgb=colour.is_rgb,
        is_tiled=page.is_tiled,
        tile=_tile_shape(page),
        codec=Codec.of(page, series, find_packing(page, file)),
        axes=axes,
        colour=colour,
        pages=tuple(
            None if loaded is None or tiff_page is None else make_page_spec(loaded, tiff_page)
            for loaded, tiff_page in zip(pages, _tiff_pages(series, len(pages)), strict=True)
        ),
        page_stride=stride,
    )
    level.codec.make_decoder()  # refuses here what tifffile can't decode
    if min(level.tile) < 1:
        raise SlideError(f"{file}: level {number} has tiles of {level.tile} pixels; the file is damaged, get it again")
    if not level.is_raw:
        noun = "tile" if page.is_tiled else "strip"
        check_chunk(file, number, noun, (*level.tile, level.samples), level.stored_dtype.itemsize)
    return level, pages, remarks


def _tile_shape(page: tifffile.TiffPage) -> tuple[int, int, int]:
    """Return depth, height and width of a tile or strip."""
    if page.is_tiled:
        return max(page.tiledepth, 1), page.tilelength, page.tilewidth
    return 1, page.rowsperstrip, page.imagewidth


def _find_axes(series: tifffile.TiffPageSeries, pages_are: Pages | None, number: int, file: str) -> Axes:
    """Find the place of each of T, C, Z, Y, X and S (interleaved or separate samples) in the file.

    Leading axes go from page to page, the others lie inside a page, whose normal shape has five dimensions: separate
    sample "s", depth "d", length "l", width "w", interleaved sample "c".
    """
    page, shape, axis_names = series.keyframe, series.get_shape(False), series.get_axes(False)
    check_level(file, number, (1, 1, 1, *page.shaped[2:4]))
    letter = "C" if pages_are == "channels" else "Z"
    names = [letter if name in "IQ" and letter not in axis_names else name for name in axis_names]
    split = next((index for index in range(len(shape), -1, -1) if math.prod(shape[index:]) == page.size), 0)
    over_pages = [(name, size) for name, size in zip(names[:split], shape[:split], strict=True) if size > 1]
    in_page = [(name, size) for name, size in zip(names[split:], shape[split:], strict=True) if size > 1]
    dimensions = [(name, size) for name, size in zip("sdlwc", page.shaped, strict=True) if size > 1]
    long_axes = [name for name, _ in over_pages + in_page]
    is_clear = (
        len(set(long_axes)) == len(long_axes)
        and set(long_axes) <= set("TCZYXS")
        and not {"Y", "X"} & {name for name, _ in over_pages}
        and [size for _, size in in_page] == [size for _, size in dimensions]
        and all(
            {"l": "Y", "w": "X"}.get(dimension, name) == name
            for (name, _), (dimension, _) in zip(in_page, dimensions, strict=True)
        )
    )
    if not is_clear:
        raise SlideError(f"{file}: has axes {axis_names} of sizes {shape}, which are ambiguous; export it as OME-TIFF")
    places: dict[str, int | str] = {
        name: dimension for (name, _), (dimension, _) in zip(in_page, dimensions, strict=True)
    }
    for index, (name, _) in enumerate(over_pages):
        places[name] = math.prod(size for _, size in over_pages[index + 1 :])
    sizes = dict.fromkeys("TCZYXS", 1) | dict(over_pages + in_page)
    planes = math.prod(size for _, size in over_pages)
    return Axes(sizes=sizes, places=places, planes=planes)


def _is_raw(page: tifffile.TiffPage) -> bool:
    """Tell whether strips are plain numbers, so that any row can be read alone."""
    return (
        not page.is_tiled
        and page.compression == 1
        and page.fillorder == 1
        and page.sampleformat in (1, 2, 3)
        and page.bitspersample in (8, 16, 32, 64)
        and not page.is_subsampled
    )


def _find_fill(page: tifffile.TiffPage) -> int | float:
    """Return the value that the file states for pixels that it doesn't hold (GDAL_NODATA), otherwise 0."""
    value = page.nodata.item() if isinstance(page.nodata, np.generic) else page.nodata
    return value if abs(value) < NO_NUMBER else 0


def _find_no_data(page: tifffile.TiffPage) -> float | None:
    """Return the value that floats without data have, if the file states one (GDAL_NODATA)."""
    if page.dtype is None or page.dtype.kind != "f" or "GDAL_NODATA" not in page.tags:
        return None
    try:
        value = float(str(page.tags["GDAL_NODATA"].value).strip("\0 "))
    except ValueError:
        return None
    # What is no number, or beyond the type, needs no statement to be told from pixels.
    return value if abs(value) <= min(NO_NUMBER, float(np.finfo(page.dtype).max)) else None


def _check_codec(page: tifffile.TiffPage, file: str) -> None:
    if page.compression == 1:
        return
    try:
        if page.compression in _ELECTRON_EVENTS and not page.parent.is_eer:
            raise KeyError(page.compression)
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        raise SlideError(
            f"{file}: is compressed by method {int(page.compression)}, which isn't known; export it with another one"
        ) from None


def _load_pages(
    series: tifffile.TiffPageSeries, planes: int, directories: int | None, file: str
) -> tuple[list[Page | None], int]:
    """Return the pages of a level, or the first and the bytes from one to the next if all follow each other without gaps.

    Args:
        series: The level.
        planes: Number of pages that it declares.
        directories: Number of directories in the file, if all pages must be in its main chain.
        file: Name for messages.
    """
    first = series[0]
    if series.dataoffset is not None and first is not None:
        return [_load_page(first)], int(first.nbytes)
    if series.kind != "ome":  # in OME-TIFF, planes may be missing
        present = len(series) if directories is None else min(len(series), directories)
        if present < planes:
            raise SlideError(f"{file}: declares {planes} planes and holds {present}; it is cut short, copy it again")
    return [_load_page(page) for page in _tiff_pages(series, min(len(series), planes))], 0


def _tiff_pages(series: tifffile.TiffPageSeries, count: int) -> Iterator[tifffile.TiffPage | tifffile.TiffFrame | None]:
    return (series[index] for index in range(count))


def _load_page(page: tifffile.TiffPage | tifffile.TiffFrame | None) -> Page | None:
    if page is None:
        return None
    offsets, sizes = (np.asarray(table, np.int64).reshape(-1) for table in (page.dataoffsets, page.databytecounts))
    count = min(len(offsets), len(sizes))
    return Page(offsets[:count], sizes[:count], page.jpegtables)


def _check_tables(
    level: TiffLevel,
    all_pages: Sequence[Page | None],
    keyframe: tifffile.TiffPage,
    number: int,
    series: tifffile.TiffPageSeries,
    file: str,
    file_size: int,
) -> None:
    """Refuse a level whose tiles or strips aren't in the file, or can't be as large as declared.

    Raises:
        SlideError: Some are missing; the message says how many.
    """
    per_page = math.prod(level.grid)
    pages = [page for page in all_pages if page is not None]
    description = f"{per_page * len(pages)} {'tiles' if level.is_tiled else 'strips'} of level {number}"
    if not pages:
        raise SlideError(f"{file}: none of the planes of level {number} is in the file; it is cut short, copy it again")
    offsets = np.concatenate([page.offsets[:per_page] for page in pages])
    sizes = np.concatenate([page.sizes[:per_page] for page in pages])
    is_present = (sizes != 0) & (offsets != 0)
    if level.is_raw:
        # The image's size decides how much is read; files often state more, and must not state less.
        indices = np.concatenate([np.arange(min(len(page.offsets), per_page)) for page in pages])
        rows = np.minimum(level.tile[1], keyframe.imagelength - indices % level.grid[2] * level.tile[1])
        row_bytes = rows * (level.tile[2] * level.samples * level.stored_dtype.itemsize)
        too_short = int(np.count_nonzero(is_present & (sizes < row_bytes)))
        if too_short:
            raise SlideError(f"{file}: {too_short} of {description} are too short; the file is damaged, get it again")
        sizes = row_bytes
    last = (level.axes.planes - 1) * level.page_stride
    outside = int(np.count_nonzero(is_present & ((offsets < 0) | (sizes < 0) | (offsets > file_size - last - sizes))))
    if series.kind != "philips":  # its last row of tiles may be missing
        outside += per_page * len(pages) - len(offsets)
    if outside:
        raise SlideError(f"{file}: truncated: {outside} of {description} lie past the end of the file; copy it again")
    empty = len(offsets) - int(np.count_nonzero(is_present))
    may_be_sparse = level.is_tiled or keyframe.parent.is_bigtiff or len(series.levels) > 1
    if empty == len(offsets) or (empty and not may_be_sparse):
        raise SlideError(f"{file}: {empty} of {description} hold no data; the file is damaged, get it again")
    share = np.unique(offsets[is_present]).size / (per_page * len(pages))
    planes = level.axes.planes if level.page_stride else len(pages)
    _check_size(level, keyframe, number, share * planes, file, file_size)


def _check_size(
    level: TiffLevel, page: tifffile.TiffPage, number: int, planes: float, file: str, file_size: int
) -> None:
    """Refuse a level that can't be as large as declared; `planes` counts only tiles that are distinct and not empty."""
    height, width = level.shape[3:]
    bits = page.bitspersample if isinstance(page.bitspersample, int) else min(page.bitspersample)
    declared = page.size * planes * bits / 8
    if level.codec.packing is not None:
        declared *= (1 + 2 / math.prod(level.codec.packing)) / 3
    if declared > file_size * (1 if page.compression == 1 else MAX_COMPRESSION):
        raise SlideError(
            f"{file}: level {number} declares {height} × {width} pixels, which {file_size} bytes can't hold; "
            "the file is damaged or cut short, copy it again"
        )


def _remarks(level: TiffLevel, pages: Sequence[Page | None], number: int) -> list[str]:
    remarks = []
    missing = 0 if level.page_stride else level.axes.planes - sum(page is not None for page in pages)
    if missing:
        remarks.append(f"{missing} of {level.axes.planes} planes of level {number} aren't in the file")
    size = math.prod((*level.tile, level.samples)) * level.stored_dtype.itemsize
    if not level.is_raw and size > SLOW_SEGMENT_BYTES:
        remarks.append(
            f"level {number} is stored in tiles or strips of {size / 2**20:.0f} MiB, so reading any block is slow"
        )
    return remarks
