"""Owns reading the metadata of a TIFF file: format, channel names and warnings; `pixel_size` finds the pixel size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from slidesam.tasks.errors import in_one_line
from slidesam.tasks.slides.bright_field import find_rgb
from slidesam.tasks.slides.ome_xml import OmeDocument, OmeImage
from slidesam.tasks.slides.source import RGB_NAMES, Display, SourceFacts, credible_window, one_line_name
from slidesam.tasks.slides.tiff.colour import Colour
from slidesam.tasks.slides.tiff.layout import TiffLevel
from slidesam.tasks.slides.tiff.ome_image import find_ome_image
from slidesam.tasks.slides.tiff.pages import PagesMeaning
from slidesam.tasks.slides.tiff.pixel_size import find_pixel_size

_FORMATS = {
    "svs": "Aperio SVS", "ome": "OME-TIFF", "imagej": "ImageJ TIFF", "ndpi": "Hamamatsu NDPI", "scn": "Leica SCN",
    "philips": "Philips TIFF", "bif": "Ventana BIF", "qpi": "PerkinElmer QPTIFF", "lsm": "Zeiss LSM",
    "stk": "MetaMorph STK", "fluoview": "Olympus FluoView", "avs": "Argos AVS", "indica": "Indica TIFF",
}  # fmt: skip


def read_facts(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, levels: Sequence[TiffLevel], ome: OmeDocument | None,
    meaning: PagesMeaning, warnings: Sequence[str], path: Path,
) -> SourceFacts:  # fmt: skip
    """Read the facts that the file states about one image."""
    level, page = levels[0], series.keyframe
    image, remarks = find_ome_image(tiff, series, level, ome, one_line_name(path))
    pixel_size, size_remarks = find_pixel_size(tiff, series, image)
    remarks += size_remarks
    names = _channel_names(tiff, series, level, image, meaning.names)
    display = _display(tiff, series, level.shape[1], level.colour, image)
    samples = () if image is None else image.samples
    is_rgb = level.is_rgb or find_rgb(names, [shown.colour for shown in display], np.dtype(level.dtype), samples)
    if is_rgb is None and level.axes.sizes["S"] > 1:
        is_rgb = False  # a page of three samples says itself (PhotometricInterpretation) that they aren't colours
    if int(page.tags.valueof(274, 1)) != 1:
        remarks.append(f"its orientation tag ({int(page.tags.valueof(274))}) isn't applied")
    return SourceFacts(
        format=_FORMATS.get(series.kind, "TIFF"),
        series=tiff.series.index(series),
        n_series=len(tiff.series),
        dtype=np.dtype(level.dtype),
        shapes=tuple(level.shape for level in levels),
        chunks=tuple(level.chunks for level in levels),
        pixel_size=pixel_size,
        channel_names=(*RGB_NAMES, *names[len(RGB_NAMES) :]) if is_rgb else names,
        is_rgb=is_rgb,
        warnings=(*warnings, *remarks),
        identity_files=(path,),
        display=display,
        can_have_gaps=level.colour.alpha is not None,
        pages=meaning.pages,
    )


def _display(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, count: int, colour: Colour, image: OmeImage | None
) -> tuple[Display, ...]:
    """Read colours from OME metadata or a palette, and display ranges from ImageJ's, if there is one for each channel."""
    colours: Sequence[str | None] = [colour.ramp] * count
    if image is not None and len(image.colours) == count:
        colours = image.colours
    windows: list[tuple[float, float] | None] = [None] * count
    ranges = (tiff.imagej_metadata or {}).get("Ranges") if series.kind == "imagej" else None
    if isinstance(ranges, tuple) and len(ranges) == 2 * count:
        windows = [credible_window(*ranges[index : index + 2]) for index in range(0, 2 * count, 2)]
    return tuple(Display(*pair) for pair in zip(colours, windows, strict=True))


def _channel_names(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, level: TiffLevel, image: OmeImage | None, page_names: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    count = level.shape[1]
    if level.is_rgb:
        return (*RGB_NAMES, *(f"extra {number + 1}" for number in range(count - len(RGB_NAMES))))
    names: Sequence[str] = page_names if len(page_names) == count else ()
    if image is not None and len(image.channel_names) == count:
        names = image.channel_names
    elif series.kind == "imagej":
        labels = (tiff.imagej_metadata or {}).get("Labels") or ()
        names = (
            [in_one_line(str(label), 80) for label in labels[:count]] if level.shape[0] * level.shape[2] == 1 else ()
        )
    names = [*names, *[""] * (count - len(names))]
    return tuple(name.strip() or f"channel {number}" for number, name in enumerate(names))
