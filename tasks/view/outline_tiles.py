"""Draw tiles of the objects' outlines, from the level of the label image that is shown.

Tiles can be finer than level 0: then an outline is thinner than a pixel of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.grid import Region
from slidesam.tasks.report.overlay import find_outlines
from slidesam.tasks.store.pyramids import ShownLevel
from slidesam.tasks.view.image_tiles import TILE, tile_shape
from slidesam.tasks.view.object_rows import ObjectSummary

# Pixels around a tile that decide which of its own are of an outline.
_AROUND = 2
# Of a palette, whose first colour is transparent; classes beyond these share colours.
_MOST_COLOURS = 255
FINENESS = 4
"""Pixels of the finest tiles per pixel of level 0."""


def read_label_tile(
    levels: Sequence[ShownLevel], scale: Fraction, row: int, column: int
) -> tuple[NDArray[np.integer], tuple[slice, slice]]:
    """Read the labels of a tile and of the pixels around it that its outlines depend on.

    Args:
        levels: The label image, each level the first out of 2 × 2 pixels of the one before.
        scale: Pixels of level 0 per pixel of the tile: a power of two, also below one.
        row: The tile's.
        column: The tile's.

    Returns:
        (y, x) labels, and where the tile is in them.

    Raises:
        IndexError: There is no such tile.
        OutputError: A file of the label image is damaged.
    """
    height, width = tile_shape(levels[0].shape, float(scale), row, column)
    level = levels[min(max(0, int(math.log2(scale))), len(levels) - 1)]
    # Pixels of the level per pixel of the tile, or the other way round.
    step = max(1, int(scale / Fraction(level.place.step[0])))
    repeat = max(1, int(1 / scale))
    spans = [
        (max(number * TILE - _AROUND, 0), min(number * TILE + size + _AROUND, math.ceil(whole / scale)))
        for number, size, whole in zip((row, column), (height, width), levels[0].shape, strict=True)
    ]
    (y0, y1), (x0, x1) = ((first * step // repeat, (last - 1) * step // repeat + 1) for first, last in spans)
    labels = level.read(Region(y0, x0, y1, x1), (0,))[::step, ::step, 0]
    labels = labels.repeat(repeat, axis=0).repeat(repeat, axis=1)
    rows, columns = (
        slice(first % repeat, first % repeat + last - first) if repeat > 1 else slice(None) for first, last in spans
    )
    inside = (
        slice(row * TILE - spans[0][0], row * TILE - spans[0][0] + height),
        slice(column * TILE - spans[1][0], column * TILE - spans[1][0] + width),
    )
    return labels[rows, columns], inside


def draw_outline_tile(
    levels: Sequence[ShownLevel], scale: Fraction, row: int, column: int
) -> tuple[NDArray[np.bool_], NDArray[np.integer]]:
    """Find the outlines in a tile: pixels of objects beside other objects or background, and there the next ones inside.

    So lines are two pixels wide; the page shows a tile's pixels at half their size to once.

    Args:
        levels: See `read_label_tile`.
        scale: See `read_label_tile`.
        row: See `read_label_tile`.
        column: See `read_label_tile`.

    Returns:
        (y, x) whether a pixel is of an outline, and (y, x) labels.

    Raises:
        IndexError: There is no such tile.
        OutputError: A file of the label image is damaged.
    """
    labels, inside = read_label_tile(levels, scale, row, column)
    return _thicken(find_outlines(labels), labels)[inside], labels[inside]


def _thicken(is_outline: NDArray[np.bool_], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Add the next pixels inside to outlines beside background; those of objects that touch are two pixels wide together."""
    halves = [
        ((slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)) for axis in (0, 1)
    ]
    beside_background = np.zeros_like(is_outline)
    for first, second in halves:
        beside_background[first] |= labels[second] == 0
        beside_background[second] |= labels[first] == 0
    beside_background &= is_outline
    thick = is_outline.copy()
    for first, second in halves:
        is_same = labels[first] == labels[second]
        thick[first] |= beside_background[second] & is_same
        thick[second] |= beside_background[first] & is_same
    return thick


def colour_outlines(
    is_outline: NDArray[np.bool_],
    ids: NDArray[np.integer],
    summary: ObjectSummary | None,
    colours: Sequence[tuple[int, int, int]],
    hidden: frozenset[str],
) -> Image.Image:
    """Colour outlines by the classes of their objects.

    Args:
        is_outline: (y, x) whether a pixel is of an outline.
        ids: (y, x) labels.
        summary: The objects, if they are known.
        colours: One for each class, or for all objects.
        hidden: Names of classes that aren't shown.

    Returns:
        A picture with a palette, whose colour 0 is where nothing is.
    """
    indices = is_outline.astype(np.uint8)
    if summary is not None and summary.class_names and summary.ids.size:
        places = np.searchsorted(summary.ids, ids[is_outline]).clip(max=summary.ids.size - 1)
        numbers = summary.class_numbers[places]
        is_hidden = np.array([name in hidden for name in summary.class_names])
        indices[is_outline] = np.where(is_hidden[numbers], 0, numbers % _MOST_COLOURS + 1)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(bytes([0, 0, 0, *(part for colour in colours[:_MOST_COLOURS] for part in colour)]))
    return picture
