"""Draw tiles of the image. Tile (row, column) at a scale of d shows d × d pixels of level 0 in each of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.report.overlay import to_rgb
from slidesam.tasks.store.pyramids import ShownLevel

TILE = 512
"""Height and width of a tile; those at the slide's far edges are smaller."""
# Of one tile, as they are read: with more, a coarser level is enlarged instead.
_MOST_BYTES = 64 * 2**20
# Levels of a slide's own file are coarser by factors such as 4.0003.
_ROUNDING = 1.001


class ShownChannel(NamedTuple):
    """A channel as it is shown.

    Attributes:
        number: Its number in the image.
        colour: Red, green and blue, 0 to 255, of its brightest pixels.
        window: Values that are shown black and fully bright.
    """

    number: int
    colour: tuple[int, int, int]
    window: tuple[float, float]


class ShownImage(NamedTuple):
    """An image as it is shown.

    Attributes:
        shape: Height and width of level 0.
        levels: What there is of it, in any order; level 0 may be missing.
        is_rgb: Whether its channels are red, green and blue.
    """

    shape: tuple[int, int]
    levels: Sequence[ShownLevel]
    is_rgb: bool


def tile_shape(shape: tuple[int, int], scale: float, row: int, column: int) -> tuple[int, int]:
    """Return height and width of a tile.

    Args:
        shape: Of level 0.
        scale: Pixels of level 0 per pixel of the tile.
        row: The tile's.
        column: The tile's.

    Raises:
        IndexError: There is no such tile.

    Example:
        >>> tile_shape((1000, 700), 1, 1, 1), tile_shape((1000, 700), 2, 0, 0)
        ((488, 188), (500, 350))
    """
    height, width = (
        min(TILE, math.ceil(size / scale) - TILE * number) for size, number in zip(shape, (row, column), strict=True)
    )
    if min(height, width, row + 1, column + 1) < 1:
        raise IndexError(f"there is no tile in row {row} and column {column}")
    return height, width


def draw_image_tile(
    image: ShownImage, scale: int, row: int, column: int, channels: Sequence[ShownChannel]
) -> NDArray[np.uint8]:
    """Draw a tile of the image, from the level that shows it best.

    Args:
        image: The image.
        scale: Pixels of level 0 per pixel of the tile.
        row: The tile's.
        column: The tile's.
        channels: Which to show, and how.

    Returns:
        (y, x, 3) pixels.

    Raises:
        IndexError: There is no such tile.
        OutputError: A file of the store is damaged.
        SlideError: The slide's pixels can't be decoded.
    """
    height, width = tile_shape(image.shape, scale, row, column)
    level = _choose_level(image.levels, scale, len(channels))
    # Where the tile lies in the level, not rounded: rows and columns of its corners.
    box = [
        (at * scale - corner) / step
        for at, corner, step in zip(
            (row * TILE, column * TILE, row * TILE + height, column * TILE + width),
            level.place.corner * 2,
            level.place.step * 2,
            strict=True,
        )
    ]
    y0, x0, y1, x1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    inside = Region(max(y0, 0), max(x0, 0), min(y1, level.shape[0]), min(x1, level.shape[1]))
    if inside.is_empty:
        raise OutputError(f"the image has no pixels for the tile in row {row} and column {column}")
    pixels = _colour(level.read(inside, [channel.number for channel in channels]), channels, is_rgb=image.is_rgb)
    around = ((inside.y0 - y0, y1 - inside.y1), (inside.x0 - x0, x1 - inside.x1), (0, 0))
    pixels = np.pad(pixels, around, mode="edge")
    if pixels.shape[:2] == (height, width):
        return pixels
    filter_used = Image.Resampling.BOX if box[2] - box[0] > height else Image.Resampling.BILINEAR
    place = (box[1] - x0, box[0] - y0, box[3] - x0, box[2] - y0)
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter_used, place))


def _choose_level(levels: Sequence[ShownLevel], scale: float, n_channels: int) -> ShownLevel:
    """Choose the coarsest level that is as fine as the tile; the next coarser one where that would be too much to read."""
    by_step = sorted(levels, key=lambda level: level.place.step[0])
    fine = [level for level in by_step if level.place.step[0] <= scale * _ROUNDING]
    if fine:
        level = fine[-1]
        size = (TILE * scale) ** 2 / (level.place.step[0] * level.place.step[1]) * n_channels * level.dtype.itemsize
        if size <= _MOST_BYTES:
            return level
    coarser = [level for level in by_step if level.place.step[0] > scale * _ROUNDING]
    return coarser[0] if coarser else by_step[-1]


def _colour(pixels: NDArray[Any], channels: Sequence[ShownChannel], *, is_rgb: bool) -> NDArray[np.uint8]:
    """Stretch each of (y, x, c) channels over its window, and add up their colours."""
    windows = [channel.window for channel in channels]
    if is_rgb:
        return to_rgb(pixels, windows)
    mixed = np.zeros((*pixels.shape[:2], 3), np.uint16)
    for place, channel in enumerate(channels):
        grey = to_rgb(pixels[..., place : place + 1], windows[place : place + 1])
        # A grey of 255 gives the colour itself.
        mixed += (grey * np.array(channel.colour, np.uint16) + 127) // 255
    return np.minimum(mixed, 255).astype(np.uint8)
