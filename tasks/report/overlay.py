"""Draw the picture of a result: the whole slide with its blocks, and beside it details where blocks meet, at full resolution."""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.percentiles import common_window, nearest_percentiles
from slidesam.tasks.pixels.tissue import TissueMask
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.no_data import fill_no_data
from slidesam.tasks.store.arrays import open_level, read_region
from slidesam.tasks.store.image import read_published
from slidesam.tasks.store.readers import open_display

_DETAIL_SIDE = 384  # height and width of a detail in pixels of level 0; it is drawn at twice its size
_MAX_DETAILS = 4
_OVERVIEW_SIDE = 2 * _DETAIL_SIDE
_MARGIN = 12
_CAPTION = 26
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_OUTLINE_ON_BRIGHT, _OUTLINE_ON_DARK, _SEAM = (0, 255, 80), (255, 210, 0), (20, 20, 20)
_TISSUE = (0, 190, 255)  # outline of the mask: a colour that neither stains nor seams have
_SKIPPED = 128  # grey of the blocks that were not segmented; visible on glass and on black
_HATCH = 12  # pixels between the lines of the hatching


class Detail(NamedTuple):
    """A window of level 0 around a point where blocks meet."""

    region: Region
    objects_at_seam: int


class PictureView(NamedTuple):
    """Which part of the slide a picture shows.

    Attributes:
        corner: Row and column of level 0 at which the picture begins.
        step: Rows and columns of level 0 that a pixel of it takes.
    """

    corner: tuple[float, float]
    step: tuple[float, float]

    def find(self, at: float, axis: int) -> float:
        """Return where a row (axis 0) or column of level 0 begins in the picture."""
        return (at - self.corner[axis]) / self.step[axis]


def write_overlay(
    run: Run, n_objects: int, tissue_mask: TissueMask | None = None, block_ids: Collection[int] | None = None
) -> None:
    """Write the overlay PNG.

    Args:
        run: A run whose label arrays are painted.
        n_objects: Number of objects, for the caption.
        tissue_mask: Where tissue is, outlined in the picture; None = no outline.
        block_ids: The segmented blocks; the others are hatched. None = all.

    Raises:
        SlideError: The slide's pixels can't be read.
    """
    labels = open_level(run.paths.label_image / "0", run.settings.image.ome_zarr)
    is_segmented = np.isin(np.arange(len(run.grid)), list(range(len(run.grid)) if block_ids is None else block_ids))
    is_segmented = is_segmented.reshape(run.grid.grid_shape)
    details = choose_details(run.grid, labels, is_segmented)
    channels = display_channels(run.slide)
    windows = display_windows(read_published(run, channels)[0], is_rgb=run.slide.is_rgb)
    overview = _draw_overview(run, channels, windows, details, tissue_mask, is_segmented)
    tiles = [(overview, _make_caption(run, n_objects, int(is_segmented.sum())))]
    with closing(open_display(run, channels)) as reader:
        for number, detail in enumerate(details, 1):
            image = to_rgb(reader.read(detail.region), windows)
            drawn = _draw_detail(image, read_region(labels, detail.region), detail.region, run.grid)
            caption = f"{number}  row {detail.region.y0}, column {detail.region.x0} px"
            tiles.append((drawn, caption))
    buffer = io.BytesIO()
    _compose(tiles).save(buffer, "PNG")
    write_atomic(run.paths.overlay, buffer.getvalue())


def choose_details(
    grid: BlockGrid, labels: zarr.Array[Any], is_segmented: NDArray[np.bool_] | None = None
) -> list[Detail]:
    """Choose the details with most objects across seams: where four blocks meet, else where two meet, else the slide's middle.

    Args:
        grid: The blocks.
        labels: TCZYX label image.
        is_segmented: (row, column) bool per block. Points where at least two segmented blocks meet are preferred.

    Returns:
        At most four details, the busiest first.
    """
    rows = [y * grid.block_shape[0] for y in range(1, grid.grid_shape[0])]
    columns = [x * grid.block_shape[1] for x in range(1, grid.grid_shape[1])]
    middle_y, middle_x = grid.shape[0] // 2, grid.shape[1] // 2
    points = [(y, x) for y in rows or [middle_y] for x in columns or [middle_x]]
    if is_segmented is not None:
        points = [point for point in points if _count_segmented(grid, is_segmented, point) >= 2] or points
    # An even sample of the points, so that counting costs little compared with segmenting.
    points = points[:: max(1, len(points) // 64)]
    details = [
        Detail(region, _count_crossing(grid, labels, region))
        for region in (_make_detail_region(point, grid.shape) for point in points)
    ]
    return sorted(details, key=lambda detail: -detail.objects_at_seam)[:_MAX_DETAILS]


def display_channels(slide: Slide) -> tuple[int, ...]:
    """Choose the channels to show: red, green and blue, or the segmented ones, at most three."""
    return (0, 1, 2) if slide.is_rgb else slide.channels[:3]


def to_rgb(image: NDArray[Any], windows: list[tuple[float, float]]) -> NDArray[np.uint8]:
    """Convert (y, x, c) of any dtype to (y, x, 3) uint8: stretch each channel over its window; one channel becomes grey."""
    low, high = np.asarray(windows, np.float32).T
    numbers = fill_no_data(image, low).astype(np.float32)
    scaled = np.clip((np.clip(numbers, low, high) - low) / np.where(high > low, high - low, 1), 0, 1) * 255
    rgb = np.zeros((*image.shape[:2], 3), np.uint8)
    if image.shape[2] == 1:
        rgb[...] = scaled
    else:
        rgb[..., : image.shape[2]] = scaled
    return rgb


def _count_segmented(grid: BlockGrid, is_segmented: NDArray[np.bool_], point: tuple[int, int]) -> int:
    """Count the segmented blocks around a point."""
    (y0, y1), (x0, x1) = (
        ((at - 1) // block, at // block + 1) for at, block in zip(point, grid.block_shape, strict=True)
    )
    return int(is_segmented[max(0, y0) : y1, max(0, x0) : x1].sum())


def _make_detail_region(point: tuple[int, int], shape: tuple[int, int]) -> Region:
    """Make the region of the detail around a point, inside the slide."""
    y0, x0 = (max(0, min(at - _DETAIL_SIDE // 2, size - _DETAIL_SIDE)) for at, size in zip(point, shape, strict=True))
    return Region(y0, x0, min(y0 + _DETAIL_SIDE, shape[0]), min(x0 + _DETAIL_SIDE, shape[1]))


def _count_crossing(grid: BlockGrid, labels: zarr.Array[Any], region: Region) -> int:
    """Count the objects of a window that lie on both sides of a seam."""
    window = read_region(labels, region)
    crossing: set[int] = set()
    for y in _find_seams(region.y0, region.y1, grid.block_shape[0]):
        is_same = window[y - 1] == window[y]
        crossing.update(np.unique(window[y][is_same]).tolist())
    for x in _find_seams(region.x0, region.x1, grid.block_shape[1]):
        is_same = window[:, x - 1] == window[:, x]
        crossing.update(np.unique(window[:, x][is_same]).tolist())
    return len(crossing - {0})


def _find_seams(start: int, stop: int, block: int) -> list[int]:
    """Find the positions of seams in a window, counted from its start."""
    return [at - start for at in range(-(-(start + 1) // block) * block, stop, block)]


def display_windows(image: NDArray[Any], *, is_rgb: bool) -> list[tuple[float, float]]:
    """Choose from a coarse (y, x, c) image the range of values that each channel is shown by: `windows` of `to_rgb`."""
    if is_rgb and image.dtype == np.uint8:
        return [(0.0, 255.0)] * 3
    ends = [nearest_percentiles(image[..., channel], (1, 99.8)) for channel in range(image.shape[2])]
    return common_window(ends) if is_rgb else [(low, high) for low, high in ends]


def _draw_detail(image: NDArray[np.uint8], labels: NDArray[Any], region: Region, grid: BlockGrid) -> Image.Image:
    """Draw a detail at twice its size, so that outlines are half a pixel wide, with dashes along the seams."""
    colour = outline_colour(image)
    image, labels = image.repeat(2, axis=0).repeat(2, axis=1), labels.repeat(2, axis=0).repeat(2, axis=1)
    image[find_outlines(labels)] = colour
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for y in _find_seams(region.y0, region.y1, grid.block_shape[0]):
        for x in range(0, picture.width, 16):
            draw.line([(x, 2 * y), (x + 7, 2 * y)], fill=_SEAM, width=1)
    for x in _find_seams(region.x0, region.x1, grid.block_shape[1]):
        for y in range(0, picture.height, 16):
            draw.line([(2 * x, y), (2 * x, y + 7)], fill=_SEAM, width=1)
    return picture


def _draw_overview(
    run: Run,
    channels: tuple[int, ...],
    windows: list[tuple[float, float]],
    details: list[Detail],
    mask: TissueMask | None,
    is_segmented: NDArray[np.bool_],
) -> Image.Image:
    """Draw the slide with its grid of blocks, the skipped blocks, the mask and the frames of the details."""
    pixels, place = read_published(run, channels)
    picture = Image.fromarray(to_rgb(pixels, windows))
    shrink = min(1.0, 2 * _OVERVIEW_SIDE / max(picture.size))
    picture = picture.resize(
        (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink))), Image.Resampling.BOX
    )
    shrunk = (picture.height / pixels.shape[0], picture.width / pixels.shape[1])
    view = PictureView(place.corner, (place.step[0] / shrunk[0], place.step[1] / shrunk[1]))
    picture = Image.fromarray(_draw_blocks_and_mask(np.array(picture), mask, is_segmented, run.grid, view))
    draw = ImageDraw.Draw(picture)
    for x in range(run.grid.block_shape[1], run.slide.shape[1], run.grid.block_shape[1]):
        draw.line([(view.find(x, 1), 0), (view.find(x, 1), picture.height)], fill=_SEAM)
    for y in range(run.grid.block_shape[0], run.slide.shape[0], run.grid.block_shape[0]):
        draw.line([(0, view.find(y, 0)), (picture.width, view.find(y, 0))], fill=_SEAM)
    font = ImageFont.load_default(size=22)
    for number, detail in enumerate(details, 1):
        y0, x0, y1, x1 = (view.find(at, axis) for at, axis in zip(detail.region, (0, 1, 0, 1), strict=True))
        draw.rectangle([x0, y0, x1, y1], outline=_INK, width=3)
        draw.text((x0 + 6, y0 + 2), str(number), fill=_INK, font=font, stroke_width=3, stroke_fill=_PAPER)
    return picture


def _draw_blocks_and_mask(
    picture: NDArray[np.uint8],
    mask: TissueMask | None,
    is_segmented: NDArray[np.bool_],
    grid: BlockGrid,
    view: PictureView,
) -> NDArray[np.uint8]:
    """Hatch the skipped blocks and outline the mask."""
    # Row and column of level 0 at the centre of each pixel of the picture; the last ones may lie past the slide's end.
    y, x = (
        np.clip(view.corner[axis] + (np.arange(picture.shape[axis]) + 0.5) * view.step[axis], 0, grid.shape[axis] - 1)
        for axis in (0, 1)
    )
    is_skipped = ~is_segmented[np.ix_((y // grid.block_shape[0]).astype(int), (x // grid.block_shape[1]).astype(int))]
    picture[is_skipped] = picture[is_skipped] // 4 * 3 + _SKIPPED // 4
    diagonal = np.add.outer(np.arange(picture.shape[0]), np.arange(picture.shape[1]))
    picture[is_skipped & (diagonal % _HATCH == 0)] = _SKIPPED
    if mask is not None:
        rows, columns = (
            (at / step).astype(int).clip(0, size - 1)
            for at, step, size in zip((y, x), mask.step, mask.pixels.shape, strict=True)
        )
        picture[find_outlines(mask.pixels[np.ix_(rows, columns)])] = _TISSUE
    return picture


def outline_colour(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Choose a colour that is visible on this (y, x, 3) picture."""
    return _OUTLINE_ON_BRIGHT if image.mean() > 110 else _OUTLINE_ON_DARK


def find_outlines(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the pixels of objects that touch other objects or background."""
    # Imported here: it takes 0.25 s to load, and most processes draw no picture.
    from skimage.segmentation import find_boundaries

    return np.asarray(find_boundaries(labels, mode="inner"))


def _make_caption(run: Run, n_objects: int, n_segmented: int) -> str:
    height, width = run.slide.shape
    pixel = f", {run.slide.mpp[1]:.3g} um per pixel" if run.slide.mpp else ""
    n_blocks = len(run.grid)
    blocks = (
        f"{n_blocks} blocks"
        if n_segmented == n_blocks
        else f"{n_segmented} of {n_blocks} blocks; the rest is background"
    )
    return f"{run.name}: {n_objects:,} {run.label} on {width} x {height} px{pixel}, {blocks}"


def _compose(tiles: list[tuple[Image.Image, str]]) -> Image.Image:
    """Compose the overview on the left and the details beside it, two in a row, each under its caption."""
    (overview, caption), details = tiles[0], tiles[1:]
    cell = max((max(picture.size) for picture, _ in details), default=0)
    columns = 2 if len(details) > 1 else 1
    rows = -(-len(details) // columns)
    width = overview.width + (cell + _MARGIN) * (columns if details else 0) + 2 * _MARGIN
    height = max(overview.height + _CAPTION, rows * (cell + _CAPTION + _MARGIN)) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    _paste(sheet, draw, font, (_MARGIN, _MARGIN), overview, caption)
    for number, (picture, text) in enumerate(details):
        x = 2 * _MARGIN + overview.width + (number % columns) * (cell + _MARGIN)
        y = _MARGIN + (number // columns) * (cell + _CAPTION + _MARGIN)
        _paste(sheet, draw, font, (x, y), picture, text)
    return sheet


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    at: tuple[int, int],
    picture: Image.Image,
    caption: str,
) -> None:
    draw.text(at, caption, fill=_INK, font=font)
    sheet.paste(picture, (at[0], at[1] + _CAPTION))
