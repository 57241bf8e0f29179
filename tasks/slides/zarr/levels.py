"""Owns reading the levels of a Zarr image: their metadata, checked, and which of their chunks are there.

1. `read_level` finds the metadata that fit the files: a folder may hold those of Zarr v2 and v3 beside each other.
2. `_check_array` refuses an array whose sizes can't be true, `check_levels` levels that don't fit each other.
3. `describe_missing` counts what isn't there, and finds levels that lack what level 0 has.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SlideError, in_one_line
from slidesam.tasks.slides.source import Shape5, check_chunk, check_dtype, check_level
from slidesam.tasks.slides.zarr.chunks import (
    MAX_COUNTED_CHUNKS,
    ChunkNames,
    find_any_file,
    find_chunks,
    other_names,
    read_names,
    replace_names,
)
from slidesam.tasks.slides.zarr.metadata import read_json_object
from slidesam.tasks.slides.zarr.source import ZarrLevel, open_array

MIN_CHUNK_PIXELS, MAX_TINY_CHUNKS = 1024, 2**16  # smaller chunks are accepted if they are few
MAX_CHUNKS_PER_SHARD = 2**22  # the index of a shard, 16 bytes per chunk, is read as a whole


@dataclass(frozen=True)
class CheckedLevel:
    """A level whose metadata can be true.

    Attributes:
        array: The open Zarr array.
        level: Its description.
        chunks: Sizes (t, c, z, y, x) of what is decoded at once.
        files: Sizes (t, c, z, y, x) of what a file holds: a shard, or a chunk.
        present: Per file, along (t, c, z, y, x), whether it is there; none if there are too many to count.
        remarks: Warnings for people.
    """

    array: Any
    level: ZarrLevel
    chunks: Shape5
    files: Shape5
    present: NDArray[np.bool_] | None
    remarks: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        """Name of what a file holds, in the plural."""
        return "chunks" if self.array.shards is None else "shards"


def tczyx(axes: str, sizes: Sequence[int]) -> Shape5:
    """Return sizes in the order (t, c, z, y, x), 1 for axes that aren't there."""
    t, c, z, y, x = (int(sizes[axes.index(axis)]) if axis in axes else 1 for axis in "tczyx")
    return t, c, z, y, x


def read_level(file: str, number: int, folder: Path, axes: str, zarr_format: int) -> CheckedLevel:
    """Read and check a level.

    Args:
        file: Name for messages.
        number: Of the level, for messages.
        folder: The array's folder.
        axes: One of "t", "c", "z", "y", "x" per axis of the array.
        zarr_format: Of the metadata that describe the image: if the folder holds those of two formats, and chunks fit both,
            this one counts.

    Raises:
        SlideError: It isn't there, its sizes can't be true, or its chunks have names of no known kind.
        ValueError: Its metadata aren't JSON.
    """
    versions = [read_json_object(folder / "zarr.json"), read_json_object(folder / ".zarray")]
    versions = versions[::-1] if zarr_format == 2 else versions
    found = [values for values in versions if values is not None and values.get("node_type", "array") == "array"]
    if not found:
        raise SlideError(f"{file}: level {number} (folder {folder.name!r}) isn't there; copy the whole folder again")
    levels: list[CheckedLevel] = []
    for values in found:
        level = _check_array(file, number, folder, {**values, "attributes": {}}, axes)
        if level.present is None or level.present.any():
            return level
        levels.append(level)
    return _find_other_names(file, number, levels, axes)


def _check_array(file: str, number: int, folder: Path, metadata: dict[str, Any], axes: str) -> CheckedLevel:
    """Open an array and refuse it if its sizes can't be true.

    Raises:
        SlideError: They can't; the message says which.
    """
    array = open_array(folder, metadata)
    if array.ndim != len(axes):
        raise SlideError(
            f"{file}: level {number} has {array.ndim} axes where its metadata list {len(axes)}; write it again"
        )
    shape, chunks = tczyx(axes, array.shape), tczyx(axes, array.chunks)
    check_level(file, number, shape)
    dtype = check_dtype(file, array.dtype)
    if min(array.chunks) < 1:
        raise SlideError(f"{file}: level {number} has chunks of {array.chunks}; the file is damaged, write it again")
    check_chunk(file, number, "chunk", array.chunks, dtype.itemsize)
    (*_, height, width), (*_, rows, columns) = shape, chunks
    if rows * columns < MIN_CHUNK_PIXELS and height * width > MAX_TINY_CHUNKS * rows * columns:
        raise SlideError(
            f"{file}: level {number} is stored in chunks of {rows} × {columns} pixels, far too small to read; rechunk it"
        )
    if array.shards is not None and math.prod(array.shards) // math.prod(array.chunks) > MAX_CHUNKS_PER_SHARD:
        raise SlideError(f"{file}: level {number} has shards of {array.shards}, too many chunks each; write it again")
    level = ZarrLevel(folder=folder, shape=shape, metadata=metadata)
    present = _find_files(level, array, read_names(metadata), axes)
    return CheckedLevel(array, level, chunks, tczyx(axes, array.shards or array.chunks), present)


def _find_other_names(file: str, number: int, levels: Sequence[CheckedLevel], axes: str) -> CheckedLevel:
    """Find out by what other names the files of a level go that has none of the stated name, and correct its metadata.

    Raises:
        SlideError: There are files, but none has the name of a chunk.
    """
    for checked in levels:
        level, stated = checked.level, read_names(checked.level.metadata)
        for names in other_names(level.metadata):
            present = _find_files(level, checked.array, names, axes)
            if present is not None and present.any():
                remark = (
                    f"its chunks are named like {names.example(len(axes))} where the metadata say "
                    f"{stated.example(len(axes))}; they are read as they are named"
                )
                corrected = level.model_copy(update={"metadata": replace_names(level.metadata, names)})
                return dataclasses.replace(checked, level=corrected, present=present, remarks=(remark,))
    level, other_file = levels[0].level, find_any_file(levels[0].level.folder)
    if other_file is not None:
        raise SlideError(
            f"{file}: chunks of level {number} are named like {in_one_line(other_file, 60)!r} where its metadata say "
            f"{read_names(level.metadata).example(len(axes))!r}; copy the whole folder again, or write it again"
        )
    return levels[0]


def _find_files(level: ZarrLevel, array: Any, names: ChunkNames, axes: str) -> NDArray[np.bool_] | None:
    """Find out which chunks or shards have a file of such a name, along (t, c, z, y, x); none if there are too many."""
    sides = array.shards or array.chunks
    grid = [-(-size // side) for size, side in zip(array.shape, sides, strict=True)]
    if math.prod(grid) > MAX_COUNTED_CHUNKS:
        return None
    present = find_chunks(level.folder, names, grid).transpose([axes.index(axis) for axis in "tczyx" if axis in axes])
    return present.reshape(tczyx(axes, grid))


def check_levels(file: str, levels: Sequence[CheckedLevel]) -> None:
    """Refuse levels that aren't smaller copies of each other.

    Raises:
        SlideError: They aren't; the message says which.
    """
    for number, (finer, coarser) in enumerate(itertools.pairwise(each.level.shape for each in levels), start=1):
        fits = finer[:2] == coarser[:2] and all(b <= a for a, b in zip(finer, coarser, strict=True))
        if not fits or finer[3:] == coarser[3:]:
            raise SlideError(
                f"{file}: level {number} of {coarser} isn't a smaller copy of level {number - 1} of {finer} "
                "(t, c, z, y, x); the file is damaged or mislabelled, write it again"
            )
    if len({each.array.dtype for each in levels}) > 1:
        raise SlideError(f"{file}: its levels differ in pixel type; the file is mislabelled, write it again")


def describe_missing(levels: Sequence[CheckedLevel]) -> tuple[int, tuple[bool, ...], list[str]]:
    """Count the chunks or shards that aren't there; they read as background without an error.

    Empty chunks inside a shard that is there don't count: writers leave them out.

    Returns:
        How many of level 0 are missing; per level, whether it shows all that level 0 shows; remarks.
    """
    finest = levels[0]
    if finest.present is None:
        remark = f"it has more than {MAX_COUNTED_CHUNKS} {finest.noun}, too many to find out whether all are there"
        return 0, (True,) * len(levels), [remark]
    remarks = []
    missing = finest.present.size - int(np.count_nonzero(finest.present))
    if missing:
        finding = f"{missing} of {finest.present.size} {finest.noun} of level 0 aren't there and read as background"
        remarks.append(f"{finding}; check that the copy is complete")
    whole = tuple(_shows_all(coarser, finest) for coarser in levels)
    incomplete = ", ".join(str(number) for number, is_whole in enumerate(whole) if not is_whole)
    if incomplete:
        remarks.append(
            f"level {incomplete} lacks {finest.noun} of pixels that level 0 has; check that the copy is complete"
        )
    return missing, whole, remarks


def _shows_all(coarser: CheckedLevel, finest: CheckedLevel) -> bool:
    """Tell whether level 0 has no pixels either where the coarser level has none."""
    if coarser is finest or coarser.present is None or coarser.present.all() or finest.present is None:
        return True
    t, c, z, rows, columns = np.argwhere(~coarser.present).T
    planes: NDArray[np.bool_] = finest.present
    if planes.shape[:3] != coarser.present.shape[:3]:
        planes, (t, c, z) = np.any(planes, axis=(0, 1, 2), keepdims=True), np.zeros((3, len(t)), int)
    # Sums from the first chunk to each: four of them give the number of chunks in a rectangle.
    sums = np.pad(planes.cumsum(3, dtype=np.int64).cumsum(4), ((0, 0),) * 3 + ((1, 0),) * 2)
    (y0, y1), (x0, x1) = _find_spans(coarser, finest, 3, rows), _find_spans(coarser, finest, 4, columns)
    counts = sums[t, c, z, y1, x1] - sums[t, c, z, y0, x1] - sums[t, c, z, y1, x0] + sums[t, c, z, y0, x0]
    return not counts.any()


def _find_spans(
    coarser: CheckedLevel, finest: CheckedLevel, axis: int, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find which files of level 0, first and end along an axis, hold the pixels of files of the coarser level.

    A pixel at each end is left out, since it may lie a fraction of a pixel beyond them.
    """
    size, side = coarser.level.shape[axis], coarser.files[axis]
    factor = finest.level.shape[axis] / size
    start, stop = numbers * side + 1, np.minimum((numbers + 1) * side, size) - 1
    first = (start * factor).astype(np.int64) // finest.files[axis]
    end = -(-np.ceil(stop * factor).astype(np.int64) // finest.files[axis])
    return np.minimum(first, end), end
