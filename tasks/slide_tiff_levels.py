"""Levels of an image in a TIFF file, and whether the file holds what it declares.

All checks are done on the directories, before a pixel is read, with numpy over the tables of offsets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidesam.tasks.errors import SlideError
from slidesam.tasks.slide_source import Shape5, check_chunk, check_dtype, check_level
from slidesam.tasks.slide_tiff_layout import Axes, Page, TiffLevel

MAX_COMPRESSION = 100_000  # decoded bytes per byte of file; a blank canvas reaches 6000
SLOW_SEGMENT_BYTES = 2**28
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated alpha
_RGB_LIKE = (2, 6)  # Photometric: RGB, YCbCr
_GREY = (0, 1)  # Photometric: 0 is white, 0 is black


def read_levels(
    series: tifffile.TiffPageSeries, directories: int, file: str, file_size: int
) -> tuple[tuple[TiffLevel, ...], list[str]]:
    """Layout of all levels of an image, finest first.

    Args:
        series: tifffile's view of the image.
        directories: Number of directories in the file.
        file: Name for messages.
        file_size: Bytes.

    Returns:
        The levels, and what a person should know.

    Raises:
        SlideError: The file doesn't hold what it declares.
    """
    warnings: list[str] = []
    levels: list[TiffLevel] = []
    for number, part in enumerate(series.levels):
        level = _level(part, number, directories, file)
        if levels and not _is_smaller_copy(level.shape, levels[-1].shape):
            warnings.append(f"level {number} and later ones aren't smaller copies of the image and aren't used")
            break
        warnings += _check_segments(level, number, series, file, file_size)
        levels.append(level)
    return tuple(levels), warnings


def _is_smaller_copy(shape: Shape5, finer: Shape5) -> bool:
    smaller = shape[3] <= finer[3] and shape[4] <= finer[4] and shape[3:] != finer[3:]
    return smaller and shape[:3] == finer[:3]


def _level(series: tifffile.TiffPageSeries, number: int, directories: int, file: str) -> TiffLevel:
    keyframe = series.keyframe
    dtype = check_dtype(file, keyframe.dtype)
    axes = _axes(series, file)
    sizes = axes.sizes
    shape = (sizes["T"], sizes["C"] * axes.kept_samples, sizes["Z"], sizes["Y"], sizes["X"])
    check_level(file, number, shape)
    pages, stride = _pages(series, number, directories, file)
    samples = keyframe.shaped[4]
    is_rgb = keyframe.photometric in _RGB_LIKE and shape[1] == axes.kept_samples == 3
    level = TiffLevel(
        shape, dtype, str(keyframe.parent.byteorder), samples, _is_raw(keyframe), _fill(keyframe, is_rgb), is_rgb,
        keyframe, series.transform, axes, pages, stride,
    )  # fmt: skip
    if min(level.tile) < 1:
        raise SlideError(f"{file}: level {number} has tiles of {level.tile} pixels; the file is damaged, get it again")
    _check_codec(keyframe, file)
    keyframe.init_decode()  # looks into the file, which is closed later
    if not level.is_raw:
        check_chunk(file, number, "tile" if keyframe.is_tiled else "strip", (*level.tile, samples), dtype.itemsize)
    return level


def _axes(series: tifffile.TiffPageSeries, file: str) -> Axes:
    """Assigns the file's axes to T, C, Z, Y, X and S, and finds where each is."""
    names, shape, page = series.get_axes(False), series.get_shape(False), series.keyframe
    check_level(file, 0, (1, 1, 1, *page.shaped[2:4]))
    split = next((at for at in range(len(shape), -1, -1) if math.prod(shape[at:]) == page.size), 0)
    inner = [
        ("s", page.shaped[0]),
        ("d", page.shaped[1]),
        ("l", page.shaped[2]),
        ("w", page.shaped[3]),
        ("c", page.shaped[4]),
    ]
    inner = [(name, size) for name, size in inner if size > 1]
    outer = [(name, size) for name, size in zip(names[split:], shape[split:], strict=True) if size > 1]
    sizes, places = dict.fromkeys("TCZYXS", 1), dict[str, int | str]()
    unclear = [size for _, size in inner] != [size for _, size in outer]
    for axis, size in zip(names, shape, strict=True):
        target = "Z" if axis in "IQ" and "Z" not in names else axis
        if size == 1:
            continue
        if target not in sizes or sizes[target] > 1:
            unclear = True
            continue
        sizes[target] = size
    for (dimension, _), (axis, _) in zip(inner, outer, strict=False):
        target = "Z" if axis in "IQ" else axis
        unclear = (
            unclear
            or (dimension in "lw") != (target in "YX")
            or (target in "YX" and "YX"["lw".index(dimension)] != target)
        )
        places[target] = dimension
    for at in range(split):
        places.setdefault("Z" if names[at] in "IQ" else names[at], math.prod(shape[at + 1 : split]))
    if unclear:
        raise SlideError(f"{file}: has axes {names} of sizes {shape}, which can't be told apart; export it as OME-TIFF")
    return Axes(sizes, places, _kept_samples(page, sizes["S"]))


def _kept_samples(page: tifffile.TiffPage, samples: int) -> int:
    """Samples of a pixel without its alpha."""
    extra = tuple(int(each) for each in page.extrasamples)
    if (
        page.photometric in _RGB_LIKE
        and samples > 3
        and (samples == 4 or (set(extra) <= set(_ALPHA) and len(extra) == samples - 3))
    ):
        return 3
    if page.photometric in _GREY and samples == 2 and extra[-1:] and extra[-1] in _ALPHA:
        return 1
    return samples


def _is_raw(page: tifffile.TiffPage) -> bool:
    return (
        not page.is_tiled
        and page.compression == 1
        and page.predictor == 1
        and page.fillorder == 1
        and page.sampleformat in (1, 2, 3)
        and page.bitspersample in (8, 16, 32, 64)
        and not page.is_subsampled
    )


def _fill(page: tifffile.TiffPage, is_rgb: bool) -> int | float:
    # Philips leaves out tiles without tissue, which are white.
    return 255 if is_rgb and page.parent.is_philips else page.nodata


def _check_codec(page: tifffile.TiffPage, file: str) -> None:
    if page.compression == 1:
        return
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        raise SlideError(
            f"{file}: is compressed by a method that isn't known ({page.compression}); export it with another compression"
        ) from None


def _pages(
    series: tifffile.TiffPageSeries, number: int, directories: int, file: str
) -> tuple[tuple[Page | None, ...], int]:
    if series.dataoffset is not None:
        first = series[0]
        return (_page(first),), int(first.nbytes) if first is not None else 0
    if series.kind != "ome" and number == 0 and len(series) > directories:
        raise SlideError(
            f"{file}: declares {len(series)} planes and holds {directories}; it is cut short, copy it again"
        )
    return tuple(_page(series[at]) for at in range(len(series))), 0


def _page(page: tifffile.TiffPage | tifffile.TiffFrame | None) -> Page | None:
    if page is None:
        return None
    offsets, sizes = (np.asarray(table, np.int64).reshape(-1) for table in (page.dataoffsets, page.databytecounts))
    count = min(len(offsets), len(sizes))
    return Page(offsets[:count], sizes[:count], page.jpegtables)


def _check_segments(
    level: TiffLevel, number: int, series: tifffile.TiffPageSeries, file: str, file_size: int
) -> list[str]:
    """Refuses a level whose tiles or strips aren't in the file, or can't be as large as declared."""
    what, per_page = "tiles" if level.keyframe.is_tiled else "strips", math.prod(level.grid)
    pages = [page for page in level.pages if page is not None]
    if not pages:
        raise SlideError(f"{file}: level {number} has no pixels in this file; it is cut short, copy it again")
    offsets = np.concatenate([page.offsets[:per_page] for page in pages])
    sizes = np.concatenate([page.sizes[:per_page] for page in pages])
    planes = math.prod(
        size for axis, size in level.axes.sizes.items() if isinstance(level.axes.places.get(axis, ""), int)
    )
    total = per_page * (planes if level.page_stride else len(pages))
    there = (sizes != 0) & (offsets != 0)
    last = (planes - 1) * level.page_stride if level.page_stride else 0
    if level.is_raw:
        sizes = _raw_sizes(
            level, number, np.where(there, sizes, -1), [len(page.offsets[:per_page]) for page in pages], file
        )
    past = int(np.count_nonzero(there & ((offsets < 0) | (sizes < 0) | (offsets > file_size - last - sizes))))
    missing = 0 if series.kind == "philips" else per_page * len(pages) - len(offsets)
    if past or missing:
        raise SlideError(
            f"{file}: truncated: {past + missing} of {total} {what} of level {number} lie past the end of the file; copy it again"
        )
    empty = len(offsets) - int(np.count_nonzero(there))
    sparse_allowed = level.keyframe.is_tiled or level.keyframe.parent.is_bigtiff or len(series.levels) > 1
    if empty == len(offsets) or (empty and not sparse_allowed):
        raise SlideError(
            f"{file}: {empty} of {total} {what} of level {number} hold no data; the file is damaged, get it again"
        )
    _check_size(
        level, number, np.unique(offsets[there]).size * (planes if level.page_stride else 1) / total, file, file_size
    )
    return _remarks(level, number, planes)


def _raw_sizes(
    level: TiffLevel, number: int, stated: NDArray[np.int64], counts: Sequence[int], file: str
) -> NDArray[np.int64]:
    """Bytes of uncompressed strips by what they hold: what the file states is often more, and may not be less."""
    _, height, width = level.tile
    rows = np.concatenate([np.arange(count) for count in counts]) % level.grid[2] * height
    due = np.minimum(height, level.keyframe.imagelength - rows) * (width * level.samples * level.dtype.itemsize)
    short = int(np.count_nonzero((stated >= 0) & (stated < due)))
    if short:
        raise SlideError(
            f"{file}: {short} of {len(due)} strips of level {number} are too short; the file is damaged, get it again"
        )
    return due


def _check_size(level: TiffLevel, number: int, share: float, file: str, file_size: int) -> None:
    """Refuses a level that can't be as large as declared; `share` of its tiles or strips are distinct."""
    page = level.keyframe
    bits = page.bitspersample if isinstance(page.bitspersample, int) else sum(page.bitspersample)
    declared = math.prod(level.axes.sizes.values()) * bits // 8 * share
    if declared > file_size * (1 if page.compression == 1 else MAX_COMPRESSION):
        raise SlideError(
            f"{file}: level {number} declares {level.shape[3]} × {level.shape[4]} pixels, which {file_size} bytes can't hold; "
            "the file is damaged or cut short, copy it again"
        )


def _remarks(level: TiffLevel, number: int, planes: int) -> list[str]:
    remarks = []
    missing = sum(page is None for page in level.pages)
    if missing:
        remarks.append(f"{missing} of {planes} planes of level {number} aren't in the file")
    size = math.prod((*level.tile, level.samples)) * level.dtype.itemsize
    if not level.is_raw and size > SLOW_SEGMENT_BYTES:
        remarks.append(
            f"level {number} is stored in pieces of {size / 2**20:.0f} MiB, so that reading any block is slow"
        )
    return remarks
