"""Owns finding what OME-XML says about an image of a TIFF file, and what to do where the two contradict each other."""

from __future__ import annotations

import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.slides.ome_xml import OmeDocument, OmeImage
from slidesam.tasks.slides.tiff.layout import TiffLevel

_START_CHARACTERS = 1000


def find_ome_image(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, level: TiffLevel, ome: OmeDocument | None, file: str
) -> tuple[OmeImage | None, list[str]]:
    """Find the `Image` element of a series: the one with its number if the size is equal, otherwise the first of this size.

    Args:
        tiff: The open file.
        series: The image.
        level: Its finest level.
        ome: The document; none if there is none that can be parsed.
        file: Name for messages.

    Returns:
        The element, none if there is none that fits, and remarks.

    Raises:
        SlideError: What the planes are isn't known: there are several, and the document is about an image of another form.
    """
    if ome is None:
        has_xml = "<OME" in tiff.pages.first.description[:_START_CHARACTERS]
        return None, ["its OME metadata can't be parsed and aren't used"] if has_xml else []
    size, number = (level.shape[4], level.shape[3]), tiff.series.index(series)
    fitting = [image for image in (*ome.images[number : number + 1], *ome.images) if image.size == size]
    if fitting and series.kind == "ome":
        return fitting[0], _remark_on_pages(tiff, series)
    planes = level.axes.planes
    if fitting and planes == 1 and fitting[0].planes in (1, level.shape[1]):
        return fitting[0], []  # one page is one page, whatever its samples are called
    stated = "no image" if not ome.images else "an image of {} × {} px".format(*ome.images[0].size)
    held = f"one of {size[0]} × {size[1]} px"
    if fitting:
        samples = max(fitting[0].samples, default=1)
        stated = f"{fitting[0].planes // samples} planes of {samples} samples per pixel"
        held = f"{planes} of {level.samples}"
    finding = f"its OME metadata describe {stated} and the file holds {held}"
    if planes > 1 and ome.images:
        raise SlideError(f"{file}: {finding}, so what its planes are isn't known; write it again as OME-TIFF")
    return None, [f"{finding}; the OME metadata aren't used"]


def _remark_on_pages(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[str]:
    """Say that the file has more pages of this size than the OME metadata list."""
    listed = sum(len(each) for each in tiff.series)
    others = len(tiff.pages) - listed
    if others <= 0 or tiff.pages[len(tiff.pages) - 1].aspage().shape != series.keyframe.shape:
        return []
    return [f"its OME metadata list {listed} of the {len(tiff.pages)} planes in the file; the others aren't used"]
