"""Choose the regions of a slide on which settings are tried: a dense, a sparse and a mixed one, from its coarse image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.background import background_of
from slidesam.tasks.pixels.tissue import TissueMask
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.no_data import fill_no_data

# Ranks among the squares with tissue. Not the extremes: those are folds, ink and dirt.
_DENSE_RANK, _SPARSE_RANK, _MIXED_RANK = 0.95, 0.1, 0.95
# Share of tissue that a square must show to be judged by, of what the fullest tenth of squares shows. In fluorescence only the
# objects are tissue, so that a sparse square shows little of it.
_LEAST_TISSUE_BRIGHT, _LEAST_TISSUE_DARK = 0.7, 0.1
_LEAST_SIDE = 64
# Squares lie half a side apart, unless there would be more than this.
_MOST_SQUARES = 20_000


class TrialRegion(NamedTuple):
    """A square of level 0 on which settings are tried.

    Attributes:
        name: What it shows: dense, sparse, mixed, or given.
        region: Where it lies.
    """

    name: str
    region: Region


def choose_trial_regions(
    slide: Slide, overview: NDArray[Any], tissue: TissueMask | None, side: int
) -> list[TrialRegion]:
    """Choose a dense, a sparse and a mixed square of a slide.

    Of the squares that show enough tissue, the dense one has more stain (in bright field: the red light that hematoxylin absorbs
    and eosin doesn't) or more light than 95 % of them, and the sparse one less than 90 %. The mixed one is among those where it
    differs most between sixteen parts of the square. None overlaps another.

    Args:
        slide: The slide.
        overview: (y, x, c) coarse image of the channels that are segmented.
        tissue: Where tissue is; None = everywhere.
        side: Height and width of a square in pixels of level 0, at most a third of the slide's shorter side.

    Returns:
        Three regions; fewer on a slide with fewer squares.
    """
    # So that three of them fit on a small slide.
    side = min(side, max(_LEAST_SIDE, min(slide.shape) // 3))
    height, width = (min(side, size) for size in slide.shape)
    places = _list_squares(slide.shape, (height, width))
    signal = _measure_signal(overview, is_rgb=slide.is_rgb)
    parts = np.array([_average_parts(_cut(signal, place, slide.shape)) for place in places])
    means, spreads = parts.mean(axis=1), parts.std(axis=1)
    free = _find_tissue_squares(slide, tissue, places)
    chosen = []
    for name, values, rank in (
        ("dense", means, _DENSE_RANK),
        ("sparse", means, _SPARSE_RANK),
        ("mixed", spreads, _MIXED_RANK),
    ):
        if free:
            in_order = sorted(free, key=values.__getitem__)
            region = places[in_order[round(rank * (len(in_order) - 1))]]
            chosen.append(TrialRegion(name, region))
            free = [number for number in free if (places[number] & region).is_empty]
    return chosen


def place_given_regions(slide: Slide, corners: Sequence[tuple[int, int]], side: int) -> list[TrialRegion]:
    """Place squares whose upper left corners, row and column of level 0, a person gave.

    Raises:
        SettingsError: A corner isn't on the slide.
    """
    height, width = (min(side, size) for size in slide.shape)
    for y, x in corners:
        if not (0 <= y < slide.shape[0] and 0 <= x < slide.shape[1]):
            raise SettingsError(
                f"--region {y},{x} isn't on {slide.name}, which has {slide.shape[0]} rows and {slide.shape[1]} columns: give "
                "row and column of a corner, in pixels of level 0"
            )
    return [
        TrialRegion("given", _fit(Region(y, x, y + height, x + width), (height, width), slide.shape))
        for y, x in corners
    ]


def _list_squares(shape: tuple[int, int], side: tuple[int, int]) -> list[Region]:
    """List squares that cover the slide, each once."""
    grid = BlockGrid(shape, (max(1, side[0] // 2), max(1, side[1] // 2)), 0)
    if len(grid) > _MOST_SQUARES:
        grid = BlockGrid(shape, side, 0)
    return list(dict.fromkeys(_fit(block.inner, side, shape) for block in grid))


def _find_tissue_squares(slide: Slide, tissue: TissueMask | None, places: list[Region]) -> list[int]:
    """Return the numbers of the squares that show enough tissue; of all, if there is no tissue."""
    if tissue is None or not tissue.pixels.any():
        return list(range(len(places)))
    shares = np.array([_cut(tissue.pixels, place, slide.shape).mean() for place in places])
    least = _LEAST_TISSUE_BRIGHT if slide.is_rgb else _LEAST_TISSUE_DARK
    enough: list[int] = np.flatnonzero((shares > 0) & (shares >= least * np.percentile(shares, 90))).tolist()
    return enough


def _fit(region: Region, side: tuple[int, int], shape: tuple[int, int]) -> Region:
    """Shift a region so that it lies on the slide with its whole height and width."""
    y0, x0 = (min(at, size - length) for at, size, length in zip(region[:2], shape, side, strict=True))
    return Region(y0, x0, y0 + side[0], x0 + side[1])


def _measure_signal(overview: NDArray[Any], *, is_rgb: bool) -> NDArray[np.float32]:
    """Return (y, x) how much stain or light each pixel has, 0 = background."""
    fill = background_of(overview, is_bright=is_rgb).astype(np.float32)
    pixels = fill_no_data(overview, fill).astype(np.float32)
    if is_rgb:
        return np.asarray(np.maximum(fill[0] - pixels[..., 0], 0), np.float32)
    above = np.maximum(pixels - fill, 0)
    # Each channel counts alike, however bright it is.
    return np.asarray((above / np.maximum(above.mean(axis=(0, 1)), 1e-9)).mean(axis=2), np.float32)


def _cut(image: NDArray[Any], region: Region, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the pixels of a coarse image of the slide under a region of level 0, at least one."""
    (y0, y1), (x0, x1) = (
        (first * pixels // size, max(first * pixels // size + 1, last * pixels // size))
        for first, last, pixels, size in zip(region[:2], region[2:], image.shape[:2], shape, strict=True)
    )
    return image[y0:y1, x0:x1]


def _average_parts(square: NDArray[np.float32]) -> list[float]:
    """Return the means of the sixteen parts of a square, of which small ones overlap."""
    (rows, columns) = (
        [(size * part // 4, max(size * part // 4 + 1, size * (part + 1) // 4)) for part in range(4)]
        for size in square.shape
    )
    return [float(square[y0:y1, x0:x1].mean()) for y0, y1 in rows for x0, x1 in columns]
