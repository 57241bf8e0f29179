"""Draw where two segmentations differ: an overview of the slide, and the places with most differences at full resolution."""

from __future__ import annotations

import io
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from slidesam.tasks.compare.counts import SampledLabels
from slidesam.tasks.compare.label_sources import LabelSource
from slidesam.tasks.errors import SlidesamError
from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import Ints
from slidesam.tasks.report.overlay import display_channels, display_windows, find_outlines, to_rgb
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.image import read_published
from slidesam.tasks.store.readers import open_display

OVERVIEW_SIDE = 1200
"""Most rows and columns of the overview."""
_CROP, _ZOOM, _MOST_CROPS = 256, 2, 4
_MARGIN, _LINE = 16, 30
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
# Okabe and Ito's colours, which people with any colour vision tell apart.
_BOTH, _ONLY_FOUND, _ONLY_TRUE, _DIFFERENT = (0, 158, 115), (230, 120, 0), (0, 114, 178), (204, 60, 167)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Sides(NamedTuple):
    """Two label images, and which of their objects are in one of them only."""

    found: LabelSource
    true: LabelSource
    only_found: Ints
    only_true: Ints


def draw_differences(
    run: Run, sides: Sides, sampled: SampledLabels, places: NDArray[np.float64], caption: str
) -> bytes:
    """Draw the picture, as PNG.

    Args:
        run: The run of the result, whose slide is drawn; where it can't be read any more, grey.
        sides: Both label images.
        sampled: What the overview is drawn from.
        places: (n, 2) y, x of each object that is only in one of both.
        caption: A line above it.
    """
    crops = choose_crops(places, sides.found.shape)
    slide = _Slide.read(run, OVERVIEW_SIDE)
    overview = _draw_overview(slide, sides, sampled)
    draw, font = ImageDraw.Draw(overview), ImageFont.load_default(size=20)
    for number, region in enumerate(crops, 1):
        y0, x0, y1, x1 = (at / sampled.step for at in region)
        draw.rectangle([x0, y0, x1, y1], outline=_INK, width=2)
        draw.text((x0 + 4, y0), str(number), fill=_INK, font=font, stroke_width=3, stroke_fill=_PAPER)
    drawn = [
        (f"{number}   x {region.x0}, y {region.y0} px", _draw_crop(run, slide, sides, region))
        for number, region in enumerate(crops, 1)
    ]
    buffer = io.BytesIO()
    _compose_sheet(caption, overview, drawn).save(buffer, "PNG")
    return buffer.getvalue()


def choose_crops(places: NDArray[np.float64], shape: tuple[int, int]) -> list[Region]:
    """Choose the windows with most places, at most four that don't overlap, the fullest first.

    Args:
        places: (n, 2) y, x.
        shape: Height and width of the slide.

    Example:
        >>> choose_crops(np.array([[10.0, 900], [20, 910], [700, 3]]), (1000, 1000))
        [Region(y0=0, x0=744, y1=256, x1=1000), Region(y0=512, x0=0, y1=768, x1=256)]
    """
    bins, counts = np.unique(places.astype(np.int64) // _CROP, axis=0, return_counts=True)
    regions: list[Region] = []
    for y, x in bins[np.argsort(-counts, kind="stable")].tolist():
        y0, x0 = (max(0, min(at * _CROP, side - _CROP)) for at, side in zip((y, x), shape, strict=True))
        region = Region(y0, x0, min(y0 + _CROP, shape[0]), min(x0 + _CROP, shape[1]))
        if all((region & other).is_empty for other in regions):
            regions.append(region)
        if len(regions) == _MOST_CROPS:
            break
    return regions


class _Slide(NamedTuple):
    """The slide as far as it can be drawn: a coarse picture, and what shows the windows alike."""

    channels: tuple[int, ...]
    overview: NDArray[Any]
    windows: list[tuple[float, float]]

    @classmethod
    def read(cls, run: Run, side: int) -> _Slide | None:
        """Read it, with at least so many rows or columns if it has them; None where the store has no image."""
        channels = display_channels(run.slide)
        try:
            pixels = read_published(run, channels)[0]
        except (SlidesamError, OSError, ValueError, KeyError):
            return None
        step = max(1, max(pixels.shape[:2]) // side)
        overview = pixels[step // 2 :: step, step // 2 :: step]
        return cls(channels, overview, display_windows(overview, is_rgb=run.slide.is_rgb))


def _draw_overview(slide: _Slide | None, sides: Sides, sampled: SampledLabels) -> Image.Image:
    """Draw the slide in grey with the objects' pixels in colour."""
    size = sampled.found.shape[1], sampled.found.shape[0]
    grey = np.full(size[::-1], 230, np.uint8)
    if slide is not None:
        image = Image.fromarray(to_rgb(slide.overview, slide.windows))
        grey = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS))
    # Paler, so that the colours stand out on it.
    picture = np.repeat((grey[..., None] * 0.6 + (95 if grey.mean() > 110 else 0)).astype(np.uint8), 3, axis=2)
    is_only_found, is_only_true = (
        np.isin(labels, ids) for labels, ids in ((sampled.found, sides.only_found), (sampled.true, sides.only_true))
    )
    _tint(picture, (sampled.found > 0) | (sampled.true > 0), _BOTH, 0.55)
    _tint(picture, is_only_found, _ONLY_FOUND, 0.9)
    _tint(picture, is_only_true, _ONLY_TRUE, 0.9)
    _tint(picture, is_only_found & is_only_true, _DIFFERENT, 0.9)
    return Image.fromarray(picture)


def _draw_crop(run: Run, slide: _Slide | None, sides: Sides, region: Region) -> Image.Image:
    """Draw a window enlarged, with the outlines of both."""
    found, true = (_enlarge(side.read(region)) for side in (sides.found, sides.true))
    picture = np.full((*found.shape, 3), 230, np.uint8)
    if slide is not None:
        # The slide's file may be elsewhere by now.
        with suppress(SlidesamError), closing(open_display(run, slide.channels)) as reader:
            picture = _enlarge(to_rgb(reader.read(region), slide.windows))
    is_only_found, is_only_true = np.isin(found, sides.only_found), np.isin(true, sides.only_true)
    edges_found, edges_true = (_find_edges(labels) for labels in (found, true))
    _tint(picture, is_only_found, _ONLY_FOUND, 0.25)
    _tint(picture, is_only_true, _ONLY_TRUE, 0.25)
    _tint(picture, edges_found & ~is_only_found, _BOTH, 1.0)
    _tint(picture, edges_found & is_only_found, _ONLY_FOUND, 1.0)
    _tint(picture, edges_true & is_only_true, _ONLY_TRUE, 1.0)
    return Image.fromarray(picture)


def _find_edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the outlines, two pixels of the enlarged picture wide."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(find_outlines(labels)) & (labels > 0))


def _enlarge(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)


def _tint(picture: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, int, int], weight: float) -> None:
    picture[where] = (picture[where] * (1 - weight) + np.array(colour) * weight).astype(np.uint8)


def _compose_sheet(caption: str, overview: Image.Image, crops: list[tuple[str, Image.Image]]) -> Image.Image:
    """Put a legend above, the overview on the left and the crops beside it, two in a row."""
    cell, columns = _CROP * _ZOOM, min(2, len(crops))
    rows = -(-len(crops) // 2)
    font = ImageFont.load_default(size=18)
    width = max(900, int(font.getlength(caption)), overview.width + columns * (cell + _MARGIN)) + 2 * _MARGIN
    height = max(overview.height, rows * (cell + _LINE)) + 2 * _MARGIN + 3 * _LINE
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_legend(draw, font)
    top = _MARGIN + 2 * _LINE
    draw.text((_MARGIN, _MARGIN + _LINE), caption, fill=_INK, font=font)
    draw.text((_MARGIN, top + 4), "the whole slide", fill=_INK, font=font)
    sheet.paste(overview, (_MARGIN, top + _LINE))
    for number, (words, picture) in enumerate(crops):
        x = 2 * _MARGIN + overview.width + number % 2 * (cell + _MARGIN)
        y = top + number // 2 * (cell + _LINE)
        draw.text((x, y + 4), words, fill=_INK, font=font)
        sheet.paste(picture, (x, y + _LINE))
    return sheet


def _write_legend(draw: ImageDraw.ImageDraw, font: _Font) -> None:
    entries = (
        (_BOTH, "in both"), (_ONLY_FOUND, "only in the result"), (_ONLY_TRUE, "only in the truth"),
        (_DIFFERENT, "in each as another object"),
    )  # fmt: skip
    x = _MARGIN
    for colour, text in entries:
        draw.rectangle([x, _MARGIN + 3, x + 14, _MARGIN + 17], fill=colour)
        draw.text((x + 22, _MARGIN), text, fill=_INK, font=font)
        x += 22 + int(draw.textlength(text, font=font)) + 28
