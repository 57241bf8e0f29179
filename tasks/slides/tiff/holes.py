"""Owns what is missing in a TIFF file: tiles or strips whose place or size is zero, as in sparse files.

Such a tile wasn't scanned, or its file was cut or copied badly. It is read as background (`TiffLevel.fill`), counted, and said.
A coarser level in which more is missing than in level 0 isn't whole: nothing may be decided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.slides.tiff.layout import Page, TiffLevel

# Pixels of a level by which its tiles may seem to reach beyond those of level 0 below them, since its size is rounded.
_ROUNDING = 2
# Formats whose writers leave out tiles of glass.
LEAVES_OUT_GLASS = ("philips",)


@dataclass(frozen=True)
class Holes:
    """Tiles or strips of a level that aren't in the file.

    Attributes:
        level: Number of the level in the file, where levels that aren't used count too.
        missing: Number of them, over all planes.
        total: Number of tiles or strips that there should be.
        somewhere: (rows, columns) bool, missing in at least one plane.
        everywhere: (rows, columns) bool, missing in all planes.
        planes: (planes, rows, columns) bool, missing.
    """

    level: int
    missing: int
    total: int
    somewhere: NDArray[np.bool_]
    everywhere: NDArray[np.bool_]
    planes: NDArray[np.bool_]


def find_holes(level: TiffLevel, number: int, pages: Sequence[Page | None]) -> Holes:
    """Find the tiles or strips of a level that aren't in the file.

    Args:
        level: The level.
        number: Its number in the file.
        pages: Its pages with their tables; none for planes that are missing altogether.
    """
    samples, depths, rows, columns = level.grid
    per_page = samples * depths * rows * columns
    is_missing = np.stack([_find_missing(page, per_page) for page in pages if page is not None])
    planes = is_missing.reshape(-1, rows, columns)
    return Holes(
        number,
        int(np.count_nonzero(planes)),
        planes.size,
        np.logical_or.reduce(planes),
        np.logical_and.reduce(planes),
        planes,
    )


def _find_missing(page: Page, count: int) -> NDArray[np.bool_]:
    """Return bool per tile; those that the page's tables don't list are missing."""
    is_missing = np.ones(count, bool)
    listed = (page.offsets[:count] == 0) | (page.sizes[:count] == 0)
    is_missing[: listed.size] = listed
    return is_missing


def is_whole(level: TiffLevel, holes: Holes, finest: TiffLevel, finest_holes: Holes) -> bool:
    """Tell whether a coarser level shows all that level 0 shows: its holes lie over holes.

    Args:
        level: The coarser level.
        holes: What is missing in it.
        finest: Level 0.
        finest_holes: What is missing in level 0.
    """
    row, column = np.nonzero(holes.somewhere)
    if not row.size:
        return True
    sums = np.pad(~finest_holes.everywhere, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    (y0, y1), (x0, x1) = (_reach(tiles, level, finest, axis) for axis, tiles in ((1, row), (2, column)))
    present = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return not present.any()


def _reach(
    tiles: NDArray[np.int64], level: TiffLevel, finest: TiffLevel, axis: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last + 1 row (axis 1) or column (2) of the tiles of level 0 that lie below those of a level."""
    size, tile, finest_tile = level.shape[2 + axis], level.tile[axis], finest.tile[axis]
    factor = finest.shape[2 + axis] / size
    start = (tiles * tile + _ROUNDING) * factor
    stop = np.maximum((np.minimum((tiles + 1) * tile, size) - _ROUNDING) * factor, start + 1)
    last = finest.grid[1 + axis]
    first = np.minimum(start // finest_tile, last - 1).astype(np.int64)
    return first, np.minimum(-(-stop // finest_tile), last).astype(np.int64)


def find_whole_levels(levels: Sequence[TiffLevel], holes: Sequence[Holes], kind: str) -> tuple[bool, ...]:
    """Tell per level whether it shows all that level 0 shows.

    Args:
        levels: Finest first.
        holes: What is missing in each.
        kind: tifffile's name of the format.
    """
    if kind in LEAVES_OUT_GLASS:
        return (True,) * len(levels)
    return tuple(is_whole(*pair, levels[0], holes[0]) for pair in zip(levels, holes, strict=True))


def describe_holes(levels: Sequence[TiffLevel], holes: Sequence[Holes], kind: str) -> list[str]:
    """Describe what is missing, one sentence for level 0 and one for coarser levels that aren't whole."""
    sentences = []
    noun = "tiles" if levels[0].is_tiled else "strips"
    if holes[0].missing:
        origin = (
            "its format leaves out what isn't tissue" if kind in LEAVES_OUT_GLASS else "check that the copy is complete"
        )
        finding = f"{holes[0].missing} of {holes[0].total} {noun} of level 0 aren't there"
        sentences.append(f"{finding} and are read as background; {origin}")
    for each, is_good in zip(holes, find_whole_levels(levels, holes, kind), strict=True):
        if not is_good:
            finding = f"{each.missing} of {each.total} {noun} of level {each.level} aren't there"
            sentences.append(f"{finding}, so tissue is looked for in a finer level; check that the copy is complete")
    return sentences
