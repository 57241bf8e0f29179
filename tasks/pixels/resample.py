"""Segment at another pixel size than the slide's: resample pixels for the segmenter, and its labels back to level 0.

Blocks are whole on both grids: `level0` pixels of the slide's finest level are `segmented` pixels of what the segmenter sees, per
axis. So neither grid needs rounding, and each shard of the label image is still written by one task. The price is a pixel size
that may miss the wanted one by `_TOLERANCE`.

Pixels of the segmented grid are numbered from the slide's corner, not from a block's, and each is computed from the slide's
pixels under it alone: two blocks that read the same place see the same pixels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.settings.types import Pair
from slidesam.tasks.slides.no_data import find_no_data
from slidesam.tasks.slides.reader import PixelReader

# How much the pixel size may miss the wanted one, so that blocks of level 0 are multiples of many powers of two.
_TOLERANCE = 0.005
_STEPS = (512, 256, 128, 64, 32, 16)
_LARGEST_BLOCK = 16384
_BAND_ROWS = 256
# Of a segmented pixel, the share with data from which it has a value.
_LEAST_SHARE = 1e-3


class Scale(NamedTuple):
    """`level0` pixels of the slide are `segmented` pixels, along y and x.

    Example:
        >>> scale = make_scale((0.25, 0.25), 0.5, (2048, 2048))
        >>> scale, scale.factor, scale.mpp((0.25, 0.25))
        (Scale(level0=(4096, 4096), segmented=(2048, 2048)), (2.0, 2.0), (0.5, 0.5))
    """

    level0: Pair
    segmented: Pair

    @property
    def is_one(self) -> bool:
        """Whether the slide is segmented as it is."""
        return self.level0 == self.segmented

    @property
    def factor(self) -> tuple[float, float]:
        """Pixels of level 0 per segmented pixel."""
        return self.level0[0] / self.segmented[0], self.level0[1] / self.segmented[1]

    def mpp(self, of_level0: tuple[float, float]) -> tuple[float, float]:
        """Size of a segmented pixel in µm."""
        return of_level0[0] * self.factor[0], of_level0[1] * self.factor[1]

    def shape(self, of_level0: Pair) -> Pair:
        """Height and width of the slide in segmented pixels; the last may reach past its edge."""
        height, width = (
            -(-size * to // of) for size, of, to in zip(of_level0, self.level0, self.segmented, strict=True)
        )
        return height, width

    def halos(self, halo: int) -> Pair:
        """Find the halo on level 0 and in segmented pixels that is `halo` segmented pixels wide along both axes.

        There is one halo for both axes. Where pixels aren't square, it is that of the axis that needs more.
        """
        axes = tuple(zip(self.level0, self.segmented, strict=True))
        level0 = max(halo * of // to for of, to in axes)
        return level0, max(halo, *(-(-level0 * to // of) for of, to in axes))


def make_scale(mpp: tuple[float, float] | None, target_mpp: float | None, block_shape: Pair) -> Scale:
    """Choose the scale by which blocks of `block_shape` have the wanted pixel size.

    Args:
        mpp: Pixel size of level 0 in µm, along y and x.
        target_mpp: Wanted pixel size in µm; None = the slide's.
        block_shape: In segmented pixels.

    Raises:
        SettingsError: The slide's pixel size isn't known, or the blocks would be too large or small on level 0.
    """
    if target_mpp is None:
        return Scale(block_shape, block_shape)
    if mpp is None:
        raise SettingsError(
            f"setting slide.target_mpp: {target_mpp:g} µm can't be reached, as the slide's pixel size isn't known: "
            "state it in slide.mpp"
        )
    level0 = tuple(_round_side(side * target_mpp / of, side) for side, of in zip(block_shape, mpp, strict=True))
    if max(level0) > _LARGEST_BLOCK or min(level0) < _STEPS[-1]:
        raise SettingsError(
            f"setting slide.target_mpp: blocks of {block_shape[1]} × {block_shape[0]} px of {target_mpp:g} µm are "
            f"{level0[1]} × {level0[0]} px of the slide ({mpp[1]:g} µm), and {_STEPS[-1]} to {_LARGEST_BLOCK} px can be "
            "computed: change blocks.block_shape, or correct slide.mpp"
        )
    return Scale((level0[0], level0[1]), block_shape)


def _round_side(side: float, segmented: int) -> int:
    """Return the side in segmented pixels if it comes near enough, else the multiple of the largest power of two that does."""
    if abs(segmented - side) <= _TOLERANCE * side:
        return segmented
    for step in _STEPS:
        rounded = round(side / step) * step
        if abs(rounded - side) <= _TOLERANCE * side:
            return rounded
    return max(_STEPS[-1], round(side / _STEPS[-1]) * _STEPS[-1])


def make_grids(shape: Pair, scale: Scale, halo: int) -> tuple[BlockGrid, BlockGrid]:
    """Cut a slide into the same blocks on level 0 and in segmented pixels.

    Args:
        shape: Height and width of level 0.
        scale: How both fit together.
        halo: In segmented pixels.
    """
    level0_halo, segmented_halo = scale.halos(halo)
    level0 = BlockGrid(shape, scale.level0, level0_halo)
    return level0, level0 if scale.is_one else BlockGrid(scale.shape(shape), scale.segmented, segmented_halo)


def best_level(downsamples: Sequence[tuple[float, float]], scale: Scale) -> int:
    """Return the coarsest level that is no coarser than the segmented pixels.

    Args:
        downsamples: How much coarser than level 0 each level is, along y and x.
        scale: The size of the segmented pixels.

    Example:
        >>> best_level([(1, 1), (4, 4), (16, 16)], make_scale((0.25, 0.25), 1.5, (512, 512)))
        1
    """
    fits = [
        level
        for level, steps in enumerate(downsamples)
        if all(step <= factor * (1 + 1e-9) for step, factor in zip(steps, scale.factor, strict=True))
    ]
    return max(fits, key=lambda level: downsamples[level], default=0)


class ScaledReader:
    """Read a slide in segmented pixels.

    Coarser pixels are means of the pixels under them, weighted by shared area; finer ones are interpolated linearly between the
    centres of two. Pixels that hold no data have no weight; where there are no others, the result is NaN.

    Args:
        reader: Reads a level of the slide.
        shape: Height and width of that level.
        factor: Pixels of that level per segmented pixel, along y and x.
    """

    def __init__(self, reader: PixelReader, shape: Pair, factor: tuple[float, float]) -> None:
        self._reader, self._shape, self._factor = reader, shape, factor

    def read(self, region: Region) -> NDArray[Any]:
        """Read (y, x, c) pixels of a region of the segmented grid, in the slide's dtype."""
        rows = _weights(region.y0, region.y1, self._factor[0], self._shape[0])
        columns = _weights(region.x0, region.x1, self._factor[1], self._shape[1])
        below = Region(rows.start, columns.start, rows.stop, columns.stop)
        pixels = self._reader.read(below)
        missing = find_no_data(pixels)
        if missing is None:
            return _resample(pixels, rows.matrix, columns.matrix)
        known = _resample(np.where(missing, 0, pixels), rows.matrix, columns.matrix)
        # Where nothing is missing this is exactly 1, so that other blocks, which see no gap, get the same bits.
        share = 1 - _resample(missing.astype(np.float32), rows.matrix, columns.matrix)
        means = known / np.maximum(share, _LEAST_SHARE)
        return np.where(share < _LEAST_SHARE, np.nan, means).astype(pixels.dtype)

    def close(self) -> None:
        """Close the reader below."""
        self._reader.close()


class LevelReader:
    """Read one level of a slide as if it were its only one.

    Args:
        read: (region, level) → (y, x, c) pixels.
        level: Number of the level.
        close: Releases files and memory.
    """

    def __init__(self, read: Callable[[Region, int], NDArray[Any]], level: int, close: Callable[[], None]) -> None:
        self._read, self._level, self.close = read, level, close

    def read(self, region: Region) -> NDArray[Any]:
        """Read (y, x, c) pixels of a region of that level."""
        return self._read(region, self._level)


class _Weights(NamedTuple):
    """The share that the old pixels `start` to `stop` have in each new pixel, as a (new, old) matrix."""

    start: int
    stop: int
    matrix: csr_matrix


def _weights(first: int, last: int, factor: float, size: int) -> _Weights:
    """Compute weights along one axis, for the segmented pixels `first` to `last`, of a level of `size` pixels."""
    new = np.arange(first, last)
    # From numbers that count from the slide's corner, so that a pixel's weights are the same in each region.
    low, high = new * factor, np.minimum((new + 1) * factor, size)
    if factor < 1:
        centre = np.clip((new + 0.5) * factor - 0.5, 0, size - 1)
        low, high = np.floor(centre), np.floor(centre) + 2
    begin = np.minimum(np.floor(low).astype(int), size - 1)
    count = int(np.max(np.ceil(high).astype(int) - begin, initial=1))
    source = begin[:, None] + np.arange(count)
    if factor < 1:
        share = np.maximum(0.0, 1.0 - np.abs(source - centre[:, None]))
    else:
        share = np.maximum(0.0, np.minimum(source + 1, high[:, None]) - np.maximum(source, low[:, None]))
        # Past the last pixel, where a level was rounded down.
        share[:, 0] += share.sum(axis=1) == 0
    share = share / share.sum(axis=1, keepdims=True)
    start, stop = int(begin[0]), min(int(source[share > 0].max()) + 1, size)
    has_weight = share > 0
    rows = np.repeat(np.arange(len(new)), has_weight.sum(axis=1))
    shape = (len(new), stop - start)
    return _Weights(
        start, stop, csr_matrix((share[has_weight].astype(np.float32), (rows, source[has_weight] - start)), shape)
    )


def _resample(pixels: NDArray[Any], rows: csr_matrix, columns: csr_matrix) -> NDArray[Any]:
    """Resample (y, x, c) pixels with a matrix per axis; some rows at a time, to hold little in float32."""
    channels = pixels.shape[2]
    out = np.empty((rows.shape[0], columns.shape[0], channels), pixels.dtype)
    for start in range(0, rows.shape[0], _BAND_ROWS):
        band = rows[start : start + _BAND_ROWS]
        y0, y1 = int(band.indices.min()), int(band.indices.max()) + 1
        under = pixels[y0:y1].astype(np.float32).reshape(y1 - y0, -1)
        lines = (band[:, y0:y1] @ under).reshape(band.shape[0], -1, channels)
        turned = columns @ np.ascontiguousarray(lines.swapaxes(0, 1)).reshape(columns.shape[1], -1)
        values = turned.reshape(columns.shape[0], band.shape[0], channels).swapaxes(0, 1)
        out[start : start + _BAND_ROWS] = _round_to(values, pixels.dtype)
    return out


def _round_to(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)


def to_level0(labels: NDArray[Any], region: Region, outer: Region, scale: Scale) -> NDArray[Any]:
    """Resample labels of a block's outer region to level 0: each pixel gets the label of the segmented pixel under its centre.

    Args:
        labels: (y, x) labels in segmented pixels.
        region: Where they lie on the segmented grid.
        outer: The region of level 0 to return, inside it.
        scale: How both fit together.

    Returns:
        (y, x) of the outer region's shape.

    Example:
        >>> to_level0(np.array([[1, 2]]), Region(0, 0, 1, 2), Region(0, 0, 2, 4), Scale((4, 4), (2, 2))).tolist()
        [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    rows = _segmented_under(outer.y0, outer.y1, scale, 0) - region.y0
    columns = _segmented_under(outer.x0, outer.x1, scale, 1) - region.x0
    return labels[rows[:, None], columns]


def _segmented_under(start: int, stop: int, scale: Scale, axis: int) -> NDArray[np.int64]:
    """Return the segmented pixel under the centre of each pixel of level 0; whole numbers, so nothing is rounded."""
    centres = 2 * np.arange(start, stop, dtype=np.int64) + 1
    return centres * scale.segmented[axis] // (2 * scale.level0[axis])
