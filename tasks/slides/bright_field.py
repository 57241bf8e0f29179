"""Owns the decision whether three channels are red, green and blue of a bright-field image, or fluorescence.

1. `find_rgb` asks what the file says: names, colours, samples per pixel (OME schema, `SamplesPerPixel`; OME-Zarr, `omero`).
2. Three unnamed channels of 8 bit may be either: bioformats2raw writes both alike. `is_bright` looks at a few pixels then: a
   bright-field slide is bright in all three colours, glass and tissue alike, and fluorescence is mostly dark. Channels of more
   than 8 bit that are only named red, green and blue are taken as these, and that is said: fluorescence is named so, too.
3. `settle_colours` decides by setting `slide.rgb`, by 1 or by 2, and says which of two possible readings was taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError, SlideAwayError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.source import RGB_NAMES, SourceFacts, SourceSpec, errors_as_slide_errors

_NO_NAME = re.compile(r"(channel|ch|c)?[ _:#-]*\d*", re.IGNORECASE)
RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
_BRIGHT = 64  # of 255, in the darkest of the three colours
_MIN_PIXELS = 100
_SEEN_SIDE = 1024  # pixels of the coarsest level that are looked at, in its middle


def is_unnamed(name: str) -> bool:
    """Tell whether a channel's name says nothing.

    Example:
        >>> is_unnamed("Channel 2"), is_unnamed("DAPI")
        (True, False)
    """
    return _NO_NAME.fullmatch(name) is not None


def are_rgb(names: Sequence[str]) -> bool:
    """Tell whether channels with these names are red, green and blue."""
    return tuple(name.strip().lower() for name in names) in (RGB_NAMES, ("r", "g", "b"))


def find_rgb(
    names: Sequence[str], colours: Sequence[str | None], dtype: np.dtype[Any], samples: Sequence[int]
) -> bool | None:
    """Find out by what the file says whether its channels are red, green and blue.

    Args:
        names: Of the channels.
        colours: Of the channels, six hexadecimal digits each; none if not stated.
        dtype: Of the pixels.
        samples: `SamplesPerPixel` of each OME channel; empty if there is no OME-XML.

    Returns:
        Whether they are; none if the file leaves it open, or says it by names alone and pixels have more than 8 bit.

    Example:
        >>> [find_rgb(names, [None] * 3, np.dtype("uint8"), ()) for names in ("RGB", ("DAPI", "b", "c"), ("", "", ""))]
        [True, False, None]
    """
    if are_rgb(names):
        return True if dtype == np.uint8 or tuple(samples) == (3,) else None
    if len(names) != 3 or dtype != np.uint8 or not all(is_unnamed(name) for name in names):
        return False
    if tuple(samples) == (3,):
        return True
    is_coloured = len(set(colours)) > 1
    return False if is_coloured and tuple(colours) != RGB_COLOURS else None


def is_bright(pixels: NDArray[np.uint8]) -> bool | None:
    """Tell whether three channels look like bright field; pixels that are 0 in all of them weren't scanned and don't count.

    Args:
        pixels: (c, y, x) of three channels.

    Returns:
        Whether they do; none if too few pixels were scanned to tell.

    Example:
        >>> is_bright(np.full((3, 20, 20), 200, np.uint8)), is_bright(np.full((3, 20, 20), 20, np.uint8))
        (True, False)
    """
    scanned = pixels.any(axis=0)
    darkest = pixels.min(axis=0)[scanned]
    return None if darkest.size < _MIN_PIXELS else float(np.median(darkest)) >= _BRIGHT


def settle_colours(
    path: Path, file: str, facts: SourceFacts, source: SourceSpec, setting: bool | None
) -> tuple[SourceFacts, SourceSpec]:
    """Decide whether an image is red, green and blue, and what its background is.

    Args:
        path: The file or folder.
        file: Name for messages.
        facts: What the file states.
        source: The description by which it is opened.
        setting: What the settings say; none = the file decides.

    Raises:
        SettingsError: The settings say that it is, and it has fewer than three channels.
        SlideAwayError: The pixels that are looked at can't be read now.
    """
    is_rgb, warnings, count = facts.is_rgb, facts.warnings, facts.shapes[0][1]
    if setting is not None:
        is_rgb = setting
        if is_rgb and count < len(RGB_NAMES):
            raise SettingsError(
                f"setting slide.rgb: {file} has {count} channels, not red, green and blue; set it to auto"
            )
    elif is_rgb is None:
        is_rgb, remark = _guess(path, file, facts, source)
        warnings = (*warnings, remark)
    names = (*RGB_NAMES, *facts.channel_names[len(RGB_NAMES) :]) if is_rgb else facts.channel_names
    return replace(facts, is_rgb=is_rgb, channel_names=names, warnings=warnings), source.with_background(is_rgb)


def _guess(path: Path, file: str, facts: SourceFacts, source: SourceSpec) -> tuple[bool, str]:
    """Decide by names, otherwise by the pixels in the middle of a coarse level, otherwise by colours; and say so."""
    if are_rgb(facts.channel_names):
        noun, is_rgb, reason = "channels", True, "these are their names"
    else:
        noun = "unnamed channels"
        is_rgb, reason = _look(path, file, facts, source)
    taken, other = ("red, green and blue", "false") if is_rgb else ("fluorescence", "true")
    return is_rgb, f"its three {noun} are taken as {taken}, since {reason}; setting slide.rgb: {other} says otherwise"


def _look(path: Path, file: str, facts: SourceFacts, source: SourceSpec) -> tuple[bool, str]:
    """Decide by the middle of the coarsest level that can be decoded there, otherwise by the colours; return the reason, too."""
    is_rgb, damaged = None, []
    with closing(source.open(path)) as reader:
        for level in reversed(range(len(facts.shapes))):
            height, width = facts.shapes[level][3:]
            y, x = max(0, (height - _SEEN_SIDE) // 2), max(0, (width - _SEEN_SIDE) // 2)
            region = Region(y, x, min(y + _SEEN_SIDE, height), min(x + _SEEN_SIDE, width))
            try:
                with errors_as_slide_errors(file, f"level {level} can't be decoded", "get it again or state slide.rgb"):
                    is_rgb = is_bright(reader.fetch(level, range(1), range(3), range(1), region)[0, :, 0])
                break
            except SlideAwayError:
                raise
            except SlideError:
                damaged.append(str(level))
    reason = "they are bright all over" if is_rgb else "they are mostly dark"
    if is_rgb is None:
        is_rgb = tuple(display.colour for display in facts.display) == RGB_COLOURS
        reason = "these are their colours" if is_rgb else "nothing says otherwise"
    return is_rgb, reason + (f" (level {', '.join(damaged)} can't be decoded in its middle)" if damaged else "")
