"""Owns what the pages of one size are if the file doesn't say: channels or focal planes.

Multiplexed images and stacks are both written as pages that follow each other. Names tell them apart: a page that is called DAPI
is a channel, pages that are numbered are planes. The names are in tag PageName (TIFF 6.0, section 12) or, one for each page, in
ImageDescription. What was taken, and why, is said; setting `slide.pages` decides otherwise.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import tifffile

from slidesam.tasks.errors import in_one_line
from slidesam.tasks.slides.source import Pages

_MAX_NAMED_PAGES = 64  # more pages are a stack: no directories are read for names
_MAX_NAME = 80
_PAGE_NAME, _DESCRIPTION = 285, 270
_NUMBERED = re.compile(
    r"(page|image|img|frame|slice|section|layer|plane|level|position|series|ifd|focus|z)?"
    r"[\s_:=#.-]*[-+]?\d+([.,/]\d+)?\s*(/|of)?\s*\d*\s*([µu]m|nm|mm|microns?)?",
    re.IGNORECASE,
)
_UNKNOWN = "IQ"  # tifffile's names of axes of which the file doesn't say what they are


class PagesMeaning(NamedTuple):
    """What the pages of an image are.

    Attributes:
        pages: Channels or focal planes; none if the file says it itself, or there is one page.
        names: Of the channels; empty if they have none.
        remarks: Sentences for people.
    """

    pages: Pages | None
    names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def find_meaning(series: tifffile.TiffPageSeries, setting: Pages | None) -> PagesMeaning:
    """Find what the pages of an image are.

    Args:
        series: The image.
        setting: What the settings say that they are; none = the file decides.
    """
    axes = dict(zip(series.get_axes(False), series.get_shape(False), strict=True))
    count = max((size for name, size in axes.items() if name in _UNKNOWN), default=1)
    if count < 2:
        return PagesMeaning(None)
    names = _read_names(series) if count == len(series) <= _MAX_NAMED_PAGES else ()
    if setting is not None:
        return PagesMeaning(setting, names if setting == "channels" else ())
    if names and "C" not in axes and axes.get("S", 1) == 1:
        listing = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        finding = f"its {count} pages have names ({listing}) and are taken as channels"
        return PagesMeaning("channels", names, (f"{finding}; setting slide.pages: z takes them as focal planes",))
    if "Z" in axes:
        return PagesMeaning(None)
    finding = f"its {count} pages of one size have no names of channels and are taken as focal planes"
    return PagesMeaning("z", (), (f"{finding}; setting slide.pages: channels takes them as channels",))


def _read_names(series: tifffile.TiffPageSeries) -> tuple[str, ...]:
    """Read the names of the pages; empty unless each has its own and they aren't mere numbers."""
    pages = [page.aspage() for page in series if page is not None]
    for code in (_PAGE_NAME, _DESCRIPTION):
        names = [str(page.tags.valueof(code, "")).strip() for page in pages]
        is_named = all(0 < len(name) <= _MAX_NAME and name[0] not in "{<" and "\n" not in name for name in names)
        if is_named and len(set(names)) == len(names) and not all(_NUMBERED.fullmatch(name) for name in names):
            return tuple(in_one_line(name, _MAX_NAME) for name in names)
    return ()
