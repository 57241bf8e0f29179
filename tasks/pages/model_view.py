"""Show what the model saw, and at which scale: the facts, and one field of the slide as the segmenter is given it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.grid import Region
from slidesam.tasks.pages.html import encode_picture, escape_text, list_facts, write_number
from slidesam.tasks.report.overlay import to_rgb
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.microsam.fields import NATIVE
from slidesam.tasks.segmenters.sight import show_input
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.slides.no_data import fill_no_data
from slidesam.tasks.store.readers import open_pixels

_SIDE = 512


def write_model_view(run: Run, record: Provenance, around: Region, windows: list[tuple[float, float]]) -> str:
    """Write the section on what the segmenter saw.

    Args:
        run: The run.
        record: Its provenance.
        around: A region of level 0, in whose middle the field lies that is shown.
        windows: The ranges of values by which the slide is shown, for segmenters that get the pixels as they are.

    Raises:
        SlideError: The pixels can't be read.
    """
    side = find_field_side(run)
    region = _place_field(run, around, side)
    with closing(open_pixels(run)) as reader:
        pixels = reader.read(region)
    fill = np.asarray(record.segmenter.fill, pixels.dtype) if record.segmenter.fill else np.zeros(pixels.shape[2])
    seen = _show(run, fill_no_data(pixels, fill), record.segmenter.params or {}, windows)
    picture = Image.fromarray(seen)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    height, width = region.shape
    return (
        f'<div class="pair"><div>{list_facts(_describe(run, record, side))}</div><figure><img class="seen" alt="" '
        f'src="{encode_picture(picture, "JPEG", quality=85)}"><figcaption>{width:,} × {height:,} segmented pixels as the '
        f"segmenter gets them{_enlarged(run, side)}</figcaption></figure></div>"
    )


def find_field_side(run: Run) -> int:
    """Return the side, in segmented pixels, of what is looked at as a whole: one of micro-sam's tiles, or an input tile."""
    segmenter = run.settings.segmenter
    if isinstance(segmenter, MicroSam):
        if isinstance(segmenter.tile_shape, tuple) and isinstance(segmenter.tile_halo, tuple):
            return max(tile + 2 * halo for tile, halo in zip(segmenter.tile_shape, segmenter.tile_halo, strict=True))
        if isinstance(segmenter.field, int):
            return segmenter.field
    return max(run.segmented_grid.outer_shape)


def _place_field(run: Run, around: Region, side: int) -> Region:
    """Place a field around a region's middle, inside the slide, in segmented pixels; of a very large one its middle."""
    side = min(side, NATIVE)
    ends = []
    for axis, (factor, size) in enumerate(zip(run.scale.factor, run.segmented_grid.shape, strict=True)):
        middle = (around[axis] + around[axis + 2]) / 2 / factor
        begin = max(0, min(round(middle - side / 2), size - side))
        ends.append((begin, min(begin + side, size)))
    (y0, y1), (x0, x1) = ends
    return Region(y0, x0, y1, x1)


def _show(
    run: Run, pixels: NDArray[Any], params: dict[str, Any], windows: list[tuple[float, float]]
) -> NDArray[np.uint8]:
    shown = show_input(run.settings.segmenter, pixels, params, is_rgb=run.slide.is_rgb)
    return to_rgb(pixels[..., : len(windows)], windows) if shown is None else shown


def _describe(run: Run, record: Provenance, side: int) -> dict[str, str]:
    segmenter, mpp = run.settings.segmenter, run.segmented_slide.mpp
    identity = record.segmenter.identity.partition(", ")[0].partition(" sha256")[0]
    grid = run.segmented_grid
    factor_y, factor_x = run.scale.factor
    own = run.slide.mpp
    described = {
        "segmenter": escape_text(
            segmenter.kind if identity in ("", segmenter.kind) else f"{segmenter.kind}: {identity}"
        ),
        "pixel size of the slide": "unknown"
        if own is None
        else f"{own[1]:.4g} × {own[0]:.4g} µm ({escape_text(run.slide.mpp_origin or 'stated in the file')})",
        "pixels segmented": (
            "as they are" if run.scale.is_one else f"averaged, {factor_x:.4g} × {factor_y:.4g} px each"
        )
        + ("" if mpp is None else f": {mpp[1]:.4g} µm"),
        "channels": escape_text(", ".join(run.slide.channel_names[channel] for channel in run.slide.channels)),
        "block with its halo": f"{grid.outer_shape[1]:,} × {grid.outer_shape[0]:,} px",
    }
    if isinstance(segmenter, MicroSam):
        wide = "" if mpp is None else f", {side * mpp[1]:.0f} µm"
        described["field of the model"] = f"{side:,} px{wide}"
        described["scale"] = f"× {NATIVE / side:.3g}: a field fills the {NATIVE:,} px of SAM's encoder"
    ranges = {name: value for name, value in (record.segmenter.params or {}).items() if name != "inputs"}
    if ranges:
        described["parameters of the slide"] = "<br>".join(
            f"{escape_text(name)}: {escape_text(_word(value))}" for name, value in ranges.items()
        )
    return described


def _word(value: object) -> str:
    """Write a parameter in short; a user's function may have left anything here."""
    if isinstance(value, list):
        return ", ".join(map(_word, value[:4])) + (", …" if len(value) > 4 else "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return write_number(value) if abs(value) < 1e300 else str(value)
    return "none" if value is None else str(value)[:200]


def _enlarged(run: Run, side: int) -> str:
    if isinstance(run.settings.segmenter, MicroSam):
        return "" if side == NATIVE else f", before they are brought to {NATIVE:,} px"
    return "" if side <= NATIVE else ", a part of a block"
