"""Lay what a run found over the slide: a small picture of the slide, and layers in its place, each of which can be hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pages.html import encode_picture
from slidesam.tasks.pixels.tissue import TissueMask
from slidesam.tasks.report.overlay import display_windows, find_outlines, to_rgb
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.image import read_published

_SIDE = 1000
_STRIP = 256
_TISSUE = (0, 170, 235)

STYLE = """
.map{position:relative;overflow:hidden;border:1px solid var(--line);background:var(--soft);max-height:80vh}
.slide{position:absolute;background-size:100% 100%}
.layer{position:absolute;display:block;image-rendering:pixelated}
.map svg{position:absolute;inset:0;width:100%;height:100%}
.map path{fill:none;stroke:#000;stroke-opacity:.45;stroke-width:1;vector-effect:non-scaling-stroke}
.frame{position:absolute;min-width:14px;min-height:14px;border:2px solid #e11e3c;color:#e11e3c;
font:600 12px/1 system-ui,sans-serif}
.frame b{position:absolute;left:2px;top:1px;text-shadow:0 0 2px #fff,0 0 2px #fff,0 0 3px #fff}
"""


class Thumbnail(NamedTuple):
    """A small picture of the slide.

    Attributes:
        picture: (y, x, 3) pixels.
        corner: Row and column of level 0 at which it begins.
        step: Rows and columns of level 0 that a pixel of it takes.
        windows: The range of values that each channel is shown by.
    """

    picture: NDArray[np.uint8]
    corner: tuple[float, float]
    step: tuple[float, float]
    windows: list[tuple[float, float]]


def read_thumbnail(run: Run, channels: tuple[int, ...], side: int = _SIDE) -> Thumbnail:
    """Read the store's image, shrunk to at most so many pixels.

    Args:
        run: A run whose image is written.
        channels: The channels to show.
        side: Height and width at most.
    """
    pixels, place = read_published(run, channels, 2 * side)
    windows = display_windows(pixels, is_rgb=run.slide.is_rgb)
    # In strips: all at once would take several times the image's memory.
    strips = range(0, pixels.shape[0], _STRIP)
    picture = Image.fromarray(np.concatenate([to_rgb(pixels[start : start + _STRIP], windows) for start in strips]))
    shrink = min(1.0, side / max(picture.size))
    size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    shrunk = np.array(picture.resize(size, Image.Resampling.BOX))
    step_y, step_x = (
        by * old / new for by, old, new in zip(place.step, pixels.shape[:2], shrunk.shape[:2], strict=True)
    )
    return Thumbnail(shrunk, place.corner, (step_y, step_x), windows)


def style_slide(thumbnail: Thumbnail, shape: tuple[int, int]) -> str:
    """Put the slide's picture into the page once, as the background of all maps.

    Args:
        thumbnail: The picture.
        shape: Height and width of level 0.
    """
    height, width = thumbnail.picture.shape[:2]
    y0, x0 = thumbnail.corner
    region = (y0, x0, y0 + height * thumbnail.step[0], x0 + width * thumbnail.step[1])
    uri = encode_picture(Image.fromarray(thumbnail.picture), "JPEG", quality=82)
    # No wider than the window's height allows.
    fit = f"aspect-ratio:{shape[1]}/{shape[0]};max-width:calc(80vh*{shape[1] / shape[0]:.4f})"
    return f".map{{{fit}}}.slide{{{_place(region, shape)};background-image:url({uri})}}"


def draw_tissue(mask: TissueMask, thumbnail: Thumbnail) -> str:
    """Draw the outline of the tissue on the grid of the slide's picture, as a data URI."""
    rows, columns = (
        ((corner + (np.arange(size) + 0.5) * step) / of).astype(int).clip(0, cells - 1)
        for corner, size, step, of, cells in zip(
            thumbnail.corner, thumbnail.picture.shape[:2], thumbnail.step, mask.step, mask.pixels.shape, strict=True
        )
    )
    outlines = find_outlines(mask.pixels[np.ix_(rows, columns)])
    drawn = Image.fromarray(outlines.astype(np.uint8), "P")
    drawn.putpalette((0, 0, 0, *_TISSUE))
    return encode_picture(drawn, "PNG", transparency=0, bits=1)


def draw_blocks(colours: NDArray[np.uint8]) -> str:
    """Draw (rows, columns, 4) colours of blocks, a pixel per block, as a data URI."""
    return encode_picture(Image.fromarray(colours), "PNG", optimize=True)


def write_layer(uri: str, name: str, region: Sequence[float], shape: tuple[int, int]) -> str:
    """Write a picture in its place over the slide.

    Args:
        uri: The picture.
        name: Class of the layer.
        region: y0, x0, y1, x1 on level 0.
        shape: Height and width of level 0.
    """
    return f'<img class="layer {name}" alt="" style="{_place(region, shape)}" src="{uri}">'


def write_lines(grid: BlockGrid) -> str:
    """Write the borders between blocks."""
    height, width = grid.shape
    rows = "".join(f"M0 {y}H{width}" for y in range(grid.block_shape[0], height, grid.block_shape[0]))
    columns = "".join(f"M{x} 0V{height}" for x in range(grid.block_shape[1], width, grid.block_shape[1]))
    return (
        f'<svg class="blocks" viewBox="0 0 {width} {height}" preserveAspectRatio="none"><path d="{rows}{columns}"/></svg>'
        if rows or columns
        else ""
    )


def write_frame(place: int, region: Region, shape: tuple[int, int]) -> str:
    """Write a numbered frame around a crop, which leads to it."""
    return f'<a class="frame crops" href="#crop{place}" style="{_place(region, shape)}"><b>{place}</b></a>'


def cover_blocks(grid: BlockGrid) -> Region:
    """Return the region that whole blocks cover: the last ones may reach past the slide's end."""
    rows, columns = grid.grid_shape
    return Region(0, 0, rows * grid.block_shape[0], columns * grid.block_shape[1])


def _place(region: Sequence[Any], shape: tuple[int, int]) -> str:
    height, width = shape
    y0, x0, y1, x1 = region
    return (
        f"left:{100 * x0 / width:.4g}%;top:{100 * y0 / height:.4g}%;"
        f"width:{100 * (x1 - x0) / width:.5g}%;height:{100 * (y1 - y0) / height:.5g}%"
    )
