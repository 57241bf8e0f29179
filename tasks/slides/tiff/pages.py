"""Owns what the pages of one size are if the file doesn't say: channels or focal planes.

Multiplexed images and stacks are both written as pages that follow each other. Names tell them apart: a page that is called DAPI
is a channel, pages that are numbered are planes. The names are in tag PageName (TIFF 6.0, section 12) or, one for each page, in
ImageDescription. What was taken, and why, is said; setting `slide.pages` decides otherwise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import tifffile

from slidesam.tasks.errors import in_one_line
from slidesam.tasks.slides.source import Pages

_MAX_NAMED_PAGES = 64  # more pages are a stack: no directories are read for names
_MAX_NAME = 80
_PAGE_NAME, _DESCRIPTION = 285, 270
_PLANE_WORD = (
    r"(page|image|img|frame|slice|section|layer|plane|level|position|series|ifd|focus|focal|stack|depth|offset|timepoint|"
    r"time|point|t|z)"
)
_NUMBERED = re.compile(
    rf"({_PLANE_WORD}[\s_-]*)*[\s_:=#.-]*[-+]?\d+([.,/]\d+)?\s*(/|of)?\s*\d*\s*([µu]m|nm|mm|microns?|m?s|sec|min)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_PLANE_BEFORE = re.compile(rf"(?<![a-z])({_PLANE_WORD}[\s_-]*)+[\s_:=#.-]*$", re.IGNORECASE)
_CHANNEL_BEFORE = re.compile(
    r"(?<![a-z])(c|ch|chan|channel|marker|stain|dye|cycle|round|filter|band|wavelength)[\s_:=#.-]*$", re.IGNORECASE
)
_TIME = re.compile(r"\d{4}([-/.:_])\d{2}\1\d{2}|\d{1,2}:\d{2}")
_MIN_COUNTED = 3  # pages; of two numbers nobody can tell whether they count
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
        if is_named and len(set(names)) == len(names) and not _are_numbered(names):
            return tuple(in_one_line(name, _MAX_NAME) for name in names)
    return ()


def _are_numbered(names: Sequence[str]) -> bool:
    """Tell whether names number pages; markers such as CD3, CD8 or Cy3, Cy5 differ in a number, too, which doesn't count.

    Example:
        >>> [_are_numbered(names) for names in (["s7_z0.tif", "s7_z1.tif"], ["a_01", "a_02", "a_03"], ["CD3", "CD4", "CD5"])]
        [True, True, False]
    """
    if all(_NUMBERED.fullmatch(name) for name in names):
        return True
    if len({_NUMBER.sub("0", name) for name in names}) > 1:
        return False
    if all(_TIME.search(name) for name in names):
        return True
    columns = zip(*(list(_NUMBER.finditer(name)) for name in names), strict=True)
    varying = [column for column in columns if len({match[0] for match in column}) > 1]
    if all(_PLANE_BEFORE.search(match.string[: match.start()]) for column in varying for match in column[:1]):
        return True
    return len(varying) == 1 and _are_counted(varying[0])


def _are_counted(numbers: Sequence[re.Match[str]]) -> bool:
    """Tell whether the numbers in which names differ count up from 0 or 1, or are filled with zeros and have a constant step."""
    before = numbers[0].string[: numbers[0].start()]
    if len(numbers) < _MIN_COUNTED or _CHANNEL_BEFORE.search(before):
        return False
    values = [abs(float(match[0].replace(",", "."))) for match in numbers]
    steps = {round(after - value, 6) for value, after in itertools.pairwise(values)}
    if len(steps) > 1:
        return False
    is_padded = any(re.match(r"[-+]?0\d", match[0]) for match in numbers)
    is_part_of_word = before[-1:].isalpha() and numbers[0][0][0].isdigit()
    return is_padded or (steps == {1} and values[0] in (0, 1) and not is_part_of_word)
