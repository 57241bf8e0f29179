"""Choose places of a slide by rules that give the same places each time, and draw them at full resolution with outlines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pages.density import DensityMap
from slidesam.tasks.pages.html import encode_picture, escape_text
from slidesam.tasks.report.overlay import find_outlines, outline_colour, to_rgb
from slidesam.tasks.slides.reader import PixelReader
from slidesam.tasks.store.arrays import read_region

SIDE = 384
"""Height and width of a crop in pixels of level 0."""

STYLE = """
.crops{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:14px}
.crops figure{scroll-margin-top:20px;max-width:600px}
.view{position:relative}
.view img{display:block;width:100%;image-rendering:pixelated}
.view .outlines,.view svg{position:absolute;inset:0;width:100%;height:100%}
.view path{fill:none;stroke:#000;stroke-dasharray:4 6;vector-effect:non-scaling-stroke}
"""


class Crop(NamedTuple):
    """A place of the slide.

    Attributes:
        rule: Why it was chosen.
        region: Where it lies on level 0.
    """

    rule: str
    region: Region


class SeamCounts:
    """Counts objects that lie in several blocks, by the nearest point where blocks meet.

    Where blocks meet along one axis only, these are the middles of their common sides.

    Args:
        grid: The blocks on level 0.
    """

    def __init__(self, grid: BlockGrid) -> None:
        self._points = [
            np.arange(1, blocks) * side if blocks > 1 else np.array([max(1, size // 2)])
            for blocks, side, size in zip(grid.grid_shape, grid.block_shape, grid.shape, strict=True)
        ]
        self._counts = np.zeros([points.size for points in self._points], np.int64)

    def add(self, y: NDArray[Any], x: NDArray[Any], blocks: NDArray[Any]) -> None:
        """Count objects by their centroids, and the number of blocks that each lies in, (n,) each."""
        is_across = blocks > 1
        found = []
        for at, points in zip((y, x), self._points, strict=True):
            # Points are whole multiples of the first.
            nearest = np.rint(at[is_across] / points[0] - 1).astype(np.int64).clip(0, points.size - 1)
            found.append((nearest, np.abs(at[is_across] - points[nearest]) <= SIDE / 2))
        is_near = found[0][1] & found[1][1]
        np.add.at(self._counts, (found[0][0][is_near], found[1][0][is_near]), 1)

    def find_busiest(self) -> tuple[int, int] | None:
        """Return row and column of the point with most objects, the first of several; None where there is no object at any."""
        if not self._counts.any():
            return None
        row, column = np.unravel_index(int(self._counts.argmax()), self._counts.shape)
        return int(self._points[0][row]), int(self._points[1][column])


def choose_places_to_show(found: DensityMap, seams: SeamCounts, disputed: DensityMap | None) -> list[Crop]:
    """Choose the places to show.

    Args:
        found: Counts of objects in cells of `SIDE` pixels.
        seams: Counts of objects in several blocks.
        disputed: Counts of disputed objects in the same cells; None = that isn't known.

    Returns:
        At most five places, none of which shows half of an earlier one; the slide's middle where there are no objects.
    """
    height, width = found.shape
    cells = np.flatnonzero(found.counts)
    chosen: list[Crop] = []

    def add(rule: str, cell: int) -> None:
        row, column = divmod(int(cell), found.counts.shape[1])
        chosen.append(Crop(rule, _around(((row + 0.5) * SIDE, (column + 0.5) * SIDE), found.shape)))

    if not cells.size:
        return [Crop("the slide's middle, as no object was found", _around((height / 2, width / 2), found.shape))]
    # Stable, so that of equals the first is taken.
    by_count = cells[np.argsort(found.counts.flat[cells], kind="stable")]
    add("most objects", int(cells[found.counts.flat[cells].argmax()]))
    if (point := seams.find_busiest()) is not None:
        chosen.append(Crop("most objects in several blocks, where blocks meet", _around(point, found.shape)))
    if disputed is not None and disputed.counts.any():
        add("most disputed objects", int(disputed.counts.argmax()))
    add("a middling number of objects", int(by_count[by_count.size // 2]))
    add("fewest objects, but some", int(by_count[0]))
    return [crop for at, crop in enumerate(chosen) if not any(_is_alike(crop, other) for other in chosen[:at])]


def _is_alike(crop: Crop, other: Crop) -> bool:
    """Whether a crop shows mostly what another one shows."""
    shared = crop.region & other.region
    return not shared.is_empty and 2 * shared.shape[0] * shared.shape[1] > crop.region.shape[0] * crop.region.shape[1]


def _around(point: tuple[float, float], shape: tuple[int, int]) -> Region:
    y0, x0 = (max(0, min(int(at) - SIDE // 2, size - SIDE)) for at, size in zip(point, shape, strict=True))
    return Region(y0, x0, min(y0 + SIDE, shape[0]), min(x0 + SIDE, shape[1]))


def write_crops(
    crops: list[Crop],
    reader: PixelReader,
    labels: zarr.Array[Any],
    windows: list[tuple[float, float]],
    grid: BlockGrid,
    pixel: tuple[float, float] | None,
) -> Iterator[str]:
    """Draw crops as figures: pixels, and over them outlines and the borders of blocks.

    Args:
        crops: The places.
        reader: Reads the channels to show.
        labels: Level 0 of the label image.
        windows: The range of values that each channel is shown by.
        grid: The blocks.
        pixel: Pixel size in µm along y and x, if known.

    Raises:
        SlideError: The slide's pixels can't be read.
        DamagedError: The labels can't be read.
    """
    for place, (rule, region) in enumerate(crops, 1):
        image = to_rgb(reader.read(region), windows)
        found = read_region(labels, region)
        pixels = encode_picture(Image.fromarray(image), "JPEG", quality=85)
        count = int((np.unique(found) > 0).sum())
        wide = f"{region.shape[1]} px" if pixel is None else f"{region.shape[1] * pixel[1]:.0f} µm"
        yield (
            f'<figure id="crop{place}"><div class="view"><img alt="" src="{pixels}">'
            f'<img class="outlines" alt="" src="{draw_labels(found, outline_colour(image))}">{_seams(region, grid)}</div>'
            f"<figcaption><b>{place}</b> {escape_text(rule)}: {count:,} in sight, {wide} wide "
            f'<span class="dim">row {region.y0:,}, column {region.x0:,} px</span></figcaption></figure>'
        )


def draw_labels(labels: NDArray[Any], colour: tuple[int, int, int]) -> str:
    """Draw the outlines of (y, x) labels at twice their size, so that lines are half a pixel wide, as a data URI."""
    outlines = find_outlines(labels.repeat(2, axis=0).repeat(2, axis=1))
    drawn = Image.fromarray(outlines.astype(np.uint8), "P")
    drawn.putpalette((0, 0, 0, *colour))
    return encode_picture(drawn, "PNG", transparency=0, bits=1)


def _seams(region: Region, grid: BlockGrid) -> str:
    height, width = region.shape
    first_y, first_x = (-(-(at + 1) // side) * side for at, side in zip(region[:2], grid.block_shape, strict=True))
    rows = "".join(f"M0 {y - region.y0}H{width}" for y in range(first_y, region.y1, grid.block_shape[0]))
    columns = "".join(f"M{x - region.x0} 0V{height}" for x in range(first_x, region.x1, grid.block_shape[1]))
    if not rows + columns:
        return ""
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none"><path d="{rows}{columns}"/></svg>'
