"""Cut what the segmenter is shown of a region: the region with its surroundings, at the scale at which a run shows it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.block import check_labels, pad_to, renumber
from slidesam.tasks.segmenters.base import Params, Segmenter
from slidesam.tasks.segmenters.votes import split_votes
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.slides.no_data import fill_no_data
from slidesam.tasks.slides.reader import PixelReader


class Window(NamedTuple):
    """What is segmented for a region, in segmented pixels; counted from the slide's corner, beyond which it may reach.

    Attributes:
        view: The region itself, of which objects are counted and shown.
        outer: The view with its surroundings.
    """

    view: Region
    outer: Region


def place_window(run: Run, region: Region) -> Window:
    """Place the window around a region of level 0.

    It reaches as far beyond the region as a block does. So that the model sees all at the scale of a run, it holds at least one
    of micro-sam's tiles; where micro-sam takes a block as a whole, it is as large as a block.
    """
    factor_y, factor_x = run.scale.factor
    view = Region(
        *(round(at / by) for at, by in zip(region, (factor_y, factor_x, factor_y, factor_x), strict=True)),
    )
    halo = run.segmented_grid.halo
    height, width = (side + 2 * halo for side in view.shape)
    segmenter = run.settings.segmenter
    if isinstance(segmenter, MicroSam):
        if isinstance(segmenter.tile_shape, tuple) and isinstance(segmenter.tile_halo, tuple):
            tile_height, tile_width = (
                tile + 2 * overlap for tile, overlap in zip(segmenter.tile_shape, segmenter.tile_halo, strict=True)
            )
            height, width = max(height, tile_height), max(width, tile_width)
        else:
            height, width = run.segmented_grid.outer_shape
    y0, x0 = view.y0 - (height - view.shape[0]) // 2, view.x0 - (width - view.shape[1]) // 2
    outer = Region(y0, x0, y0 + height, x0 + width)
    inner = Region(outer.y0 + halo, outer.x0 + halo, outer.y1 - halo, outer.x1 - halo)
    return Window(view & inner, outer)


def segment_window(
    run: Run, reader: PixelReader, window: Window, segmenter: Segmenter, params: Params, fill: NDArray[Any]
) -> NDArray[np.uint32]:
    """Segment a window as a run segments an input tile.

    Args:
        run: The run.
        reader: Reads its segmented pixels.
        window: The window.
        segmenter: The run's segmenter.
        params: What its `prepare` returned for the slide.
        fill: (c,) the slide's background.

    Returns:
        (y, x) local labels of the window's outer region.

    Raises:
        SegmenterError: The segmenter failed, or returned no labels.
        SlideError: The pixels can't be read.
    """
    outer = window.outer
    on_slide = outer & Region(0, 0, *run.segmented_grid.shape)
    pixels = fill_no_data(reader.read(on_slide), fill)
    padded = pad_to(pixels, outer.shape, (on_slide.y0 - outer.y0, on_slide.x0 - outer.x0), fill)
    image = padded[..., 0] if padded.shape[2] == 1 else padded
    labels, _ = split_votes(segmenter.begin(image, params)())
    return renumber(check_labels(labels, outer.shape))
