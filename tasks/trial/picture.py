"""Draw a trial's pictures: a region's pixels, the outlines of a choice to be laid over them, and the slide with the regions.

Pixels and outlines are pictures of their own, so that the page holds the pixels of a region once and can hide the outlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from slidesam.tasks.grid import Region
from slidesam.tasks.pages.html import encode_picture
from slidesam.tasks.pixels.resample import Scale
from slidesam.tasks.report.overlay import display_windows, find_outlines, outline_colour, to_rgb
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.trial.regions import TrialRegion
from slidesam.tasks.trial.window import Window

# Sides of the pictures, in pixels: regions that are smaller are enlarged by a whole number.
_LEAST_SIDE, _OVERVIEW_SIDE = 512, 420
_FRAME = (225, 30, 60)


class RegionPicture(NamedTuple):
    """The pixels of a region.

    Attributes:
        uri: JPEG as a data URI.
        zoom: Pixels of the picture per pixel of level 0.
        colour: In which outlines are visible on it.
    """

    uri: str
    zoom: int
    colour: tuple[int, int, int]


def draw_region(slide: Slide, channels: tuple[int, ...], overview: NDArray[Any], region: Region) -> RegionPicture:
    """Draw the pixels of a region of level 0.

    Args:
        slide: The slide.
        channels: The channels to show.
        overview: (y, x, c) coarse image of these channels, by which their range is chosen.
        region: The region.

    Raises:
        SlideError: Its pixels can't be read.
    """
    with SlideReader(slide) as reader:
        pixels = reader.read(region, channels=channels)
    rgb = to_rgb(pixels, display_windows(overview, is_rgb=slide.is_rgb))
    zoom = max(1, -(-_LEAST_SIDE // max(region.shape)))
    enlarged = Image.fromarray(rgb.repeat(zoom, axis=0).repeat(zoom, axis=1))
    return RegionPicture(encode_picture(enlarged, "JPEG", quality=88), zoom, outline_colour(rgb))


def draw_outlines(
    labels: NDArray[np.uint32], window: Window, region: Region, scale: Scale, picture: RegionPicture
) -> str:
    """Draw the outlines of a window's labels over the picture of its region.

    Args:
        labels: (y, x) labels of the window's outer region, in segmented pixels.
        window: The window.
        region: The region on level 0.
        scale: Of segmented pixels.
        picture: The region's pixels.

    Returns:
        PNG of the picture's size, transparent but for the outlines, as a data URI.
    """
    rows, columns = (
        _find_segmented(first, last, picture.zoom, factor, begin, size)
        for first, last, factor, begin, size in zip(
            region[:2], region[2:], scale.factor, window.outer[:2], labels.shape, strict=True
        )
    )
    outlines = find_outlines(labels[np.ix_(rows, columns)])
    # Of a block that is smaller than the region, only the part that it owns is shown.
    y0, x0, y1, x1 = window.view.relative_to(window.outer)
    outlines &= np.logical_and.outer((rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1))
    drawn = Image.fromarray(outlines.astype(np.uint8), "P")
    drawn.putpalette((0, 0, 0, *picture.colour))
    return encode_picture(drawn, "PNG", transparency=0, optimize=True)


def draw_places(slide: Slide, overview: NDArray[Any], step: tuple[float, float], regions: Sequence[TrialRegion]) -> str:
    """Draw the whole slide with numbered frames around the regions.

    Args:
        slide: The slide.
        overview: (y, x, c) coarse image of the channels to show.
        step: Rows and columns of level 0 that one of its pixels takes.
        regions: The regions.

    Returns:
        JPEG as a data URI.
    """
    picture = Image.fromarray(to_rgb(overview, display_windows(overview, is_rgb=slide.is_rgb)))
    shrink = _OVERVIEW_SIDE / max(picture.size)
    size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    picture = picture.resize(size, Image.Resampling.BOX if shrink < 1 else Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for number, (_, region) in enumerate(regions, 1):
        y0, x0, y1, x1 = (at / by * shrink for at, by in zip(region, (*step, *step), strict=True))
        # A frame that can be seen on the largest slide, too.
        grow = max(0.0, (8 - (x1 - x0)) / 2)
        draw.rectangle([x0 - grow, y0 - grow, x1 + grow, y1 + grow], outline=_FRAME, width=2)
        at = (min(x1 + grow + 4, picture.width - 14), max(0.0, y0 - 4))
        draw.text(at, str(number), fill=_FRAME, font=font, stroke_width=2, stroke_fill=(255, 255, 255))
    return encode_picture(picture, "JPEG", quality=85)


def _find_segmented(first: int, last: int, zoom: int, factor: float, begin: int, size: int) -> NDArray[np.int64]:
    """Return which segmented pixel of a window lies under each row (or column) of a region's picture."""
    level0 = first + (np.arange((last - first) * zoom) + 0.5) / zoom
    return (np.floor(level0 / factor).astype(np.int64) - begin).clip(0, size - 1)
