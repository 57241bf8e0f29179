"""The judge of the pixel oracle, and its whole table: right, refused by name, or wrong."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support import (
    pixel_files_by_hand,
    pixel_files_codecs,
    pixel_files_colours,
    pixel_files_gdal,
    pixel_files_libtiff,
    pixel_files_pillow,
    pixel_files_rare,
    pixel_files_tifffile,
    pixel_files_vips,
    pixel_files_zarr,
)
from tests.support.pixel_decoders import decode
from tests.support.pixel_files import Combination, Pixels

_TABLES = (
    pixel_files_vips, pixel_files_gdal, pixel_files_libtiff, pixel_files_pillow, pixel_files_tifffile, pixel_files_by_hand,
    pixel_files_colours, pixel_files_codecs, pixel_files_rare, pixel_files_zarr,
)  # fmt: skip

_PART = Region(5, 11, 37, 70)


class Verdict(NamedTuple):
    """What slidesam did with a file, and why in words.

    Attributes:
        outcome: "misnamed" is a refusal of what can be read, or one that doesn't name what can't.
        reason: What differs, or the error.
    """

    outcome: Literal["right", "refused", "misnamed", "wrong"]
    reason: str = ""


@cache
def all_combinations() -> tuple[Combination, ...]:
    """Return the whole table."""
    return tuple(combination for table in _TABLES for combination in table.combinations())


def judge(combination: Combination, folder: Path) -> Verdict:
    """Write a file, read it with another decoder, then with slidesam.

    Raises:
        AssertionError: The other decoder finds other pixels than the table says were written.
    """
    path = folder / f"slide{combination.suffix}"
    combination.write(path)
    if not combination.levels:
        return _judge_refusal(combination, path)
    decoded = decode(path, combination.decoder) if combination.decoder else None
    if decoded is not None:
        problem = difference(decoded, combination.levels[0], combination.tolerance)
        assert not problem, f"{combination.name}: {combination.decoder} finds other pixels than were written: {problem}"
    try:
        slide = inspect_slide(path)
        levels = read_levels(slide, len(combination.levels))
        part = _read_part(slide)
    except SlideError as error:
        return Verdict("misnamed", str(error))
    if combination.remark not in " ".join(slide.warnings):
        return Verdict("wrong", f"no word of {combination.remark} in its warnings, {slide.warnings}")
    if not np.array_equal(part, levels[0][(slice(-1, None), *_PART.slices)], equal_nan=True):
        return Verdict("wrong", "a part of the last channel differs from the same part of the whole image")
    return _judge_pixels(combination, levels, decoded)


def _judge_refusal(combination: Combination, path: Path) -> Verdict:
    try:
        levels = read_levels(inspect_slide(path), 1)
    except SlideError as error:
        is_named = any(re.search(rf"\b{re.escape(word)}", str(error), re.IGNORECASE) for word in combination.refusal)
        return Verdict("refused" if is_named else "misnamed", str(error))
    return Verdict("wrong", f"read as {levels[0].dtype} {levels[0].shape} instead of refused")


def _judge_pixels(combination: Combination, levels: list[Pixels], decoded: Pixels | None) -> Verdict:
    if len(levels) < len(combination.levels):
        return Verdict("wrong", f"{len(levels)} levels instead of {len(combination.levels)}")
    problems = [
        f"level {number}: {problem}"
        for number, (level, truth) in enumerate(zip(levels, combination.levels, strict=True))
        if (problem := difference(level, truth, combination.tolerance))
    ]
    if not problems and decoded is not None:
        problem = difference(levels[0], decoded, combination.agreement)
        problems = [f"beside {combination.decoder}: {problem}"] if problem else []
    return Verdict("wrong", "; ".join(problems)) if problems else Verdict("right")


def read_levels(slide: Slide, count: int) -> list[Pixels]:
    """Read all channels of the finest levels with slidesam, (c, y, x) each."""
    with SlideReader(slide) as reader:
        channels = range(slide.size_c)
        return [
            reader.read_planes(Region(0, 0, *level.shape), number, channels)
            for number, level in enumerate(slide.levels[:count])
        ]


def _read_part(slide: Slide) -> Pixels:
    """Read a part of the last channel that begins and ends inside tiles, strips and chunks."""
    with SlideReader(slide) as reader:
        return reader.read_planes(_PART, 0, [slide.size_c - 1])


def difference(pixels: Pixels, truth: Pixels, tolerance: float) -> str:
    """Say how pixels differ from what they should be by more than a tolerance; nothing if they don't."""
    if pixels.shape != truth.shape:
        return f"shape {pixels.shape} instead of {truth.shape}"
    distance = np.abs(pixels.astype(np.longdouble) - truth.astype(np.longdouble))
    largest = float(distance.max())
    share = 1 - np.mean(distance <= tolerance)
    return "" if largest <= tolerance else f"off by {largest:g} ({share:.0%} of the pixels)"
