"""Owns the layout of Ventana BIF files: their tiles are photos that may overlap, by amounts that the metadata state.

Roche's BIF specification: the XMP of the scan lists a `TileJointInfo` per pair of neighbouring tiles, with the overlap in pixels.
Side by side, as TIFF has them, overlapping tiles show the cells between them twice.
"""

from __future__ import annotations

import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.slides.tiff.text import read_text
from slidesam.tasks.slides.xml_text import parse_xml

_XMP = 700
_SIDE_IMAGES = ("Label", "Thumbnail")


def refuse_overlapping_tiles(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, file: str) -> None:
    """Refuse a scan whose tiles overlap: it isn't read by its own layout.

    Args:
        tiff: The open file, of any format.
        series: The image that is read.
        file: Name for the message.

    Raises:
        SlideError: Its tiles overlap.
    """
    if not tiff.is_bif or series.name in _SIDE_IMAGES:
        return
    overlap = max((_largest_overlap(page) for page in tiff.pages if isinstance(page, tifffile.TiffPage)), default=0)
    if overlap:
        raise SlideError(
            f"{file}: is a Ventana BIF whose tiles overlap by up to {overlap} px, which isn't read: cells between tiles would be "
            "there twice; convert it with bioformats2raw, which joins the tiles"
        )


def _largest_overlap(page: tifffile.TiffPage) -> int:
    """Return the largest overlap that a page's XMP states for two tiles that were joined, in pixels."""
    try:
        root = parse_xml(read_text(page, _XMP))
    except ValueError:
        return 0
    joints = [joint for joint in root.iter() if joint.tag.endswith("TileJointInfo") and joint.get("FlagJoined") != "0"]
    return max((abs(_whole(joint.get(name))) for joint in joints for name in ("OverlapX", "OverlapY")), default=0)


def _whole(number: str | None) -> int:
    try:
        return round(float(number or 0))
    except (ValueError, OverflowError):
        return 0
