"""Owns reading the metadata of a TIFF file: format, pixel size, channel names and warnings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from slidesam.tasks.errors import in_one_line
from slidesam.tasks.slides.ome_xml import OmeDocument, OmeImage, micrometres
from slidesam.tasks.slides.source import RGB_NAMES, Display, SourceFacts, are_rgb, credible_mpp, credible_window
from slidesam.tasks.slides.tiff.layout import TiffLevel

_FORMATS = {
    "svs": "Aperio SVS", "ome": "OME-TIFF", "imagej": "ImageJ TIFF", "ndpi": "Hamamatsu NDPI", "scn": "Leica SCN",
    "philips": "Philips TIFF", "bif": "Ventana BIF", "qpi": "PerkinElmer QPTIFF", "lsm": "Zeiss LSM",
    "stk": "MetaMorph STK", "fluoview": "Olympus FluoView", "avs": "Argos AVS", "indica": "Indica TIFF",
}  # fmt: skip
_RESOLUTION_UNITS = {2: "in", 3: "cm"}
_POWER_IN_APERIO = re.compile(r"\|\s*AppMag\s*=\s*(\d+)")
_MPP_IN_APERIO = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")


def read_facts(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, levels: Sequence[TiffLevel], ome: OmeDocument | None,
    warnings: Sequence[str], path: Path,
) -> SourceFacts:  # fmt: skip
    """Read the facts that the file states about one image."""
    level, page = levels[0], series.keyframe
    image = _ome_image(ome, tiff.series.index(series), level) if series.kind == "ome" else None
    mpp, remarks = _mpp(tiff, series, image)
    names = _channel_names(tiff, series, level, image)
    is_rgb = level.is_rgb or are_rgb(names)
    if tiff.is_ome and image is None:
        remarks.append("its OME metadata don't fit the image and aren't used")
    if int(page.tags.valueof(274, 1)) != 1:
        remarks.append(f"its orientation tag ({int(page.tags.valueof(274))}) isn't applied")
    if page.photometric == 0:
        remarks.append("its values are inverted (0 is white) and used as they are")
    if page.photometric == 3 and series.kind != "imagej":
        remarks.append("its palette isn't applied: colours are read as plain numbers")
    return SourceFacts(
        format=_FORMATS.get(series.kind, "TIFF"),
        n_series=len(tiff.series),
        dtype=np.dtype(level.dtype),
        shapes=tuple(level.shape for level in levels),
        chunks=tuple(level.chunks for level in levels),
        mpp=mpp,
        channel_names=RGB_NAMES if is_rgb else names,
        is_rgb=is_rgb,
        warnings=(*warnings, *remarks),
        identity_files=(path,),
        display=_display(tiff, series, level.shape[1], image),
    )


def _display(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, count: int, image: OmeImage | None
) -> tuple[Display, ...]:
    """Read colours from OME metadata and display ranges from ImageJ's, if there is one for each channel."""
    colours: Sequence[str | None] = [None] * count
    if image is not None and len(image.colours) == count:
        colours = image.colours
    windows: list[tuple[float, float] | None] = [None] * count
    ranges = (tiff.imagej_metadata or {}).get("Ranges") if series.kind == "imagej" else None
    if isinstance(ranges, tuple) and len(ranges) == 2 * count:
        windows = [credible_window(*ranges[index : index + 2]) for index in range(0, 2 * count, 2)]
    return tuple(Display(*pair) for pair in zip(colours, windows, strict=True))


def _ome_image(ome: OmeDocument | None, number: int, level: TiffLevel) -> OmeImage | None:
    """Find the `Image` element of a series: the one with its number if the size is equal, otherwise the first of this size."""
    if ome is None:
        return None
    size = (level.shape[4], level.shape[3])
    for image in (*ome.images[number : number + 1], *ome.images):
        if image.size == size:
            return image
    return None


def _mpp(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, image: OmeImage | None
) -> tuple[tuple[float, float] | None, list[str]]:
    """Read the pixel size (y, x) in µm from the most specific metadata that state one."""
    remarks: list[str] = []
    if image is not None:
        mpp, remarks = credible_mpp(*image.mpp, "OME metadata")
        if mpp is not None:
            return mpp, remarks
    if series.kind == "svs" or tiff.is_svs:
        match = _MPP_IN_APERIO.search(series.keyframe.description) or _MPP_IN_APERIO.search(
            tiff.pages.first.description
        )
        size = micrometres(match[1], "µm") if match else None
        # Label and macro have another scale, which isn't stated.
        if series.name not in ("", "Baseline"):
            return None, []
        mpp, remarks = credible_mpp(size, size, "description")
        objective = _POWER_IN_APERIO.search(series.keyframe.description)
        if mpp is None and objective:
            remarks.append(f"it was scanned at {objective[1]} ×, which doesn't give the pixel size exactly")
        return mpp, remarks
    mpp, tag_remarks = _mpp_of_tags(tiff, series)
    return mpp, remarks + tag_remarks


def _mpp_of_tags(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[float, float] | None, list[str]]:
    tags = series.keyframe.tags
    unit: str | None = _RESOLUTION_UNITS.get(int(tags.valueof(296, 2)))
    origin = "resolution tags"
    if series.kind == "imagej":
        imagej = (tiff.imagej_metadata or {}).get("unit")
        unit, origin = (str(imagej) if imagej else None), "ImageJ metadata"
    sizes = [_per_pixel(tags.valueof(code), unit) for code in (283, 282)]
    return credible_mpp(sizes[0], sizes[1], origin)


def _per_pixel(resolution: object, unit: str | None) -> float | None:
    """Convert pixels per unit, a fraction, to µm per pixel."""
    if not isinstance(resolution, tuple) or len(resolution) != 2 or not all(resolution):
        return None
    return micrometres(resolution[1] / resolution[0], unit)


def _channel_names(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, level: TiffLevel, image: OmeImage | None
) -> tuple[str, ...]:
    count = level.shape[1]
    if level.is_rgb:
        return RGB_NAMES
    names: Sequence[str] = ()
    if image is not None and len(image.channel_names) == count:
        names = image.channel_names
    elif series.kind == "imagej":
        labels = (tiff.imagej_metadata or {}).get("Labels") or ()
        names = (
            [in_one_line(str(label), 80) for label in labels[:count]] if level.shape[0] * level.shape[2] == 1 else ()
        )
    names = [*names, *[""] * (count - len(names))]
    return tuple(name.strip() or f"channel {number}" for number, name in enumerate(names))
