"""Count which objects of two label images share pixels: tile by tile, so that a slide of any size fits into memory.

Pixels per pair of labels, and the areas, sums and boxes of objects, add up over tiles: the result is that of the whole images,
whatever the tiles are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.compare.label_sources import LabelSource, as_labels
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import Ints, Labels, View, count_overlaps
from slidesam.tasks.labels.parts import NO_PARTS, Objects, add_up_parts, measure_parts

# Each thread holds two tiles.
_MOST_THREADS = 4
_NOTHING = (0, 0, 0, 0)
_LOW = np.uint64(0xFFFFFFFF)


class SharedCounts(NamedTuple):
    """Which objects of two label images share pixels.

    Attributes:
        found: Objects of the first one, the result.
        true: Objects of the second one, the truth.
        found_ids: (n,) object of the result of each pair that shares pixels.
        true_ids: (n,) the pair's object of the truth.
        shared: (n,) pixels that both have; ordered by the two ids.
    """

    found: Objects
    true: Objects
    found_ids: Ints
    true_ids: Ints
    shared: Ints


class SampledLabels(NamedTuple):
    """Labels of both images at the same pixels, some of all: what an overview is drawn from.

    Attributes:
        step: Rows and columns of level 0 for each pixel here, at least 1.
        found: (y, x) labels of the result.
        true: (y, x) labels of the truth.
    """

    step: float
    found: Labels
    true: Labels


class _TileCounts(NamedTuple):
    keys: NDArray[np.uint64]
    shared: Ints
    found: Ints
    true: Ints


def count_arrays(found: NDArray[np.integer], true: NDArray[np.integer]) -> SharedCounts:
    """Count what two label images of one shape share that are in memory.

    Args:
        found: (y, x) labels of the result, 0 = background.
        true: (y, x) labels of the truth.

    Raises:
        SettingsError: They aren't labels, or larger than 2³² - 2, or of two shapes.

    Example:
        >>> counts = count_arrays(np.array([[1, 1, 2, 0]]), np.array([[7, 7, 7, 0]]))
        >>> counts.found_ids.tolist(), counts.true_ids.tolist(), counts.shared.tolist(), counts.true.area.tolist()
        ([1, 2], [7, 7], [2, 1], [3])
    """
    one, other = (as_labels(labels, "the array") for labels in (found, true))
    if one.ndim != 2 or one.shape != other.shape:
        raise SettingsError(
            f"labels of the shapes {found.shape} and {true.shape}", "two (y, x) images of one shape are needed"
        )
    return _add_up([_count_tile(one, other, Region(0, 0, *one.shape))])


def count_shared(
    found: LabelSource, true: LabelSource, tile: tuple[int, int], overview_side: int = 1
) -> tuple[SharedCounts, SampledLabels]:
    """Count what two label images of one shape share, in threads, and sample both.

    Beside two tiles for each thread, it takes 0.2 kB of memory for each object.

    Args:
        found: The result.
        true: The truth.
        tile: Height and width of what is read at once.
        overview_side: Most rows and columns of the samples.

    Raises:
        OutputError, SlideError, SettingsError: One of them can't be read.
    """
    step = max(1.0, max(found.shape) / overview_side)
    rows, columns = ((np.arange(max(1, int(side / step))) + 0.5) * step for side in found.shape)
    at = rows.astype(np.int64), columns.astype(np.int64)
    sampled = SampledLabels(step, *(np.zeros((at[0].size, at[1].size), np.uint32) for _ in range(2)))

    def count(region: Region) -> _TileCounts:
        one, other = found.read(region), true.read(region)
        tops, lefts = (np.searchsorted(places, (region[axis], region[axis + 2])) for axis, places in enumerate(at))
        inside = slice(*tops.tolist()), slice(*lefts.tolist())
        picked = np.ix_(at[0][inside[0]] - region.y0, at[1][inside[1]] - region.x0)
        sampled.found[inside], sampled.true[inside] = one[picked], other[picked]
        return _count_tile(one, other, region)

    with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
        counted = list(threads.map(count, list_tiles(found.shape, tile)))
    return _add_up(counted), sampled


def list_tiles(shape: tuple[int, int], tile: tuple[int, int]) -> Iterator[Region]:
    """List the tiles of an image, by rows.

    Example:
        >>> [tuple(region) for region in list_tiles((2, 3), (2, 2))]
        [(0, 0, 2, 2), (0, 2, 2, 3)]
    """
    for y in range(0, shape[0], tile[0]):
        for x in range(0, shape[1], tile[1]):
            yield Region(y, x, min(y + tile[0], shape[0]), min(x + tile[1], shape[1]))


def _count_tile(found: Labels, true: Labels, region: Region) -> _TileCounts:
    found_ids, true_ids, counts = count_overlaps(View(found), View(true), region.shape, _NOTHING, _NOTHING)
    are_objects = (found_ids > 0) & (true_ids > 0)
    keys = (found_ids[are_objects].astype(np.uint64) << np.uint64(32)) | true_ids[are_objects].astype(np.uint64)
    return _TileCounts(keys, counts[are_objects, 0], measure_parts(found, region), measure_parts(true, region))


def _add_up(tiles: list[_TileCounts]) -> SharedCounts:
    keys, where = np.unique(np.concatenate([tile.keys for tile in tiles]), return_inverse=True)
    shared = np.zeros(keys.size, np.int64)
    np.add.at(shared, where, np.concatenate([tile.shared for tile in tiles]))
    found, true = (
        add_up_parts(np.concatenate([NO_PARTS, *parts]))
        for parts in ([tile.found for tile in tiles], [tile.true for tile in tiles])
    )
    return SharedCounts(found, true, (keys >> np.uint64(32)).astype(np.int64), (keys & _LOW).astype(np.int64), shared)
