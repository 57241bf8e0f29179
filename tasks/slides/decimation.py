"""Find out whether a slide's coarser levels average pixels or only take some of them ("nearest neighbour", decimation).

Most scanners and converters average. ome-zarr-py's default, `image[::2, ::2]` and some others take one pixel of many: cells that
are smaller than what is left out then vanish from coarse levels, on which nobody should look for tissue. No metadata tells, so a
few places of each level are compared with both ways of making them from the next finer level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SlideAwayError, SlideError, SlideGoneError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Level, Slide
from slidesam.tasks.slides.no_data import find_no_data
from slidesam.tasks.slides.reader import SlideReader

_N_PLACES, _N_CHANNELS = 3, 3
_PLACE_SIDE, _FINER_SIDE = 32, 512  # most pixels of a place, on the level and on the finer one
_WHOLE_SIDE = 2048  # a level of this size is looked at whole to choose the places
_LEAST_SHARE = 1e-4  # of the pixels under one that must hold data
_TAKEN = 0.5  # slope from which on pixels count as taken
_MAX_KEPT = 2**26  # pixels of decoded chunks that are kept for the next place

Place = tuple[float, float]
Pixels = NDArray[np.float32]
Starts = NDArray[np.floating[Any]]


def mark_decimated(slide: Slide) -> Slide:
    """Mark the levels that only take some pixels of level 0, or are made from such a level.

    Reads some thousand pixels of each level. Where pixels can't be decoded, or are all alike, nothing is marked.

    Args:
        slide: A slide as it was inspected.

    Raises:
        SlideAwayError: Its pixels can't be read now; what was marked without them would differ from run to run.
        SlideGoneError: It can't be opened any more, or has changed.
    """
    if len(slide.levels) == 1:
        return slide
    try:
        with SlideReader(slide) as reader:
            first = _find_first_decimated(reader)
    except (SlideAwayError, SlideGoneError):
        raise
    except SlideError:  # pixels that can't be decoded, today as tomorrow
        return slide
    levels = (
        *slide.levels[:first],
        *(level.model_copy(update={"is_averaged": False}) for level in slide.levels[first:]),
    )
    return slide.model_copy(update={"levels": levels})


class _Pixels:
    """Reads places of a slide's levels, and keeps the chunks read last: many places may lie in one strip as large as its level.

    Args:
        reader: The open slide.
        channels: Those to read.
    """

    def __init__(self, reader: SlideReader, channels: tuple[int, ...]) -> None:
        self._reader, self._channels = reader, channels
        self.levels = reader.slide.levels
        self._read_chunks = lru_cache(maxsize=2)(self._read_stored)

    def read(self, number: int, region: Region) -> Pixels:
        """Read (c, y, x) pixels; NaN where there is no data."""
        chunks = self._find_chunks(self.levels[number], region)
        pixels = self._read_chunks(number, chunks)[(..., *region.relative_to(chunks).slices)]
        missing = find_no_data(pixels)
        with np.errstate(over="ignore"):
            numbers: Pixels = pixels.astype(np.float32)
        return numbers if missing is None else np.where(missing, np.float32(np.nan), numbers)

    def _read_stored(self, number: int, region: Region) -> NDArray[Any]:
        return self._reader.read_planes(region, number, self._channels)

    @staticmethod
    def _find_chunks(level: Level, region: Region) -> Region:
        """Return the region of the chunks that a place touches if they are larger than places; otherwise the place."""
        sides = level.chunks[3:]
        if min(sides) < _FINER_SIDE:
            return region
        (y0, y1), (x0, x1) = (
            (low // side * side, min(-(-high // side) * side, size))
            for (low, high), side, size in zip(_sides(region), sides, level.shape, strict=True)
        )
        return Region(y0, x0, y1, x1) if (y1 - y0) * (x1 - x0) <= _MAX_KEPT else region


def _find_first_decimated(reader: SlideReader) -> int:
    """Find the finest level that is decimated; return the number of levels if there is none."""
    n_levels = len(reader.slide.levels)
    pixels, places = _choose_places(reader)
    return next((level for level in range(1, n_levels) if _is_decimated(pixels, level, places)), n_levels)


def _choose_places(reader: SlideReader) -> tuple[_Pixels, list[Place]]:
    """Choose the channels and places, as shares of height and width, with contrast on the coarsest level that has any.

    Which channels are segmented makes no difference: the labels of all of them lie over one image, made from the same levels.

    Returns:
        The first channels that vary, and where they vary most.
    """
    all_channels = tuple(range(reader.slide.size_c))
    for number in reversed(range(len(reader.slide.levels))):
        for start in range(0, len(all_channels), _N_CHANNELS):
            pixels = _Pixels(reader, all_channels[start : start + _N_CHANNELS])
            contrasts = {place: contrast for place, contrast in _measure_contrast(pixels, number) if contrast > 0}
            if contrasts:
                return pixels, sorted(contrasts, key=lambda place: -contrasts[place])[:_N_PLACES]
    return _Pixels(reader, ()), []


def _measure_contrast(pixels: _Pixels, number: int) -> Iterator[tuple[Place, float]]:
    """Yield places of a level, all over it or, if it is large, on a grid; and how much their pixels vary."""
    height, width = pixels.levels[number].shape
    whole = pixels.read(number, Region(0, 0, height, width)) if max(height, width) <= _WHOLE_SIDE else None
    steps = [_PLACE_SIDE, _PLACE_SIDE] if whole is not None else [-(-height // 4), -(-width // 4)]
    for y in range(0, height, steps[0]):
        for x in range(0, width, steps[1]):
            region = Region(y, x, min(y + _PLACE_SIDE, height), min(x + _PLACE_SIDE, width))
            place = pixels.read(number, region) if whole is None else whole[(..., *region.slices)]
            yield (y / height, x / width), _sum_deviations(place)


def _sum_deviations(place: Pixels) -> float:
    """Add up the channels' standard deviations, of the pixels that hold data."""
    missing = np.isnan(place)
    if not missing.any():
        return float(place.std(axis=(1, 2)).sum())
    known = (channel[~gaps] for channel, gaps in zip(place, missing, strict=True))
    return float(sum(values.std() for values in known if values.size))


def _is_decimated(pixels: _Pixels, number: int, places: list[Place]) -> bool:
    """Whether what a level has beyond averages of the next finer level is what single pixels of that have beyond them.

    With c a pixel of the level, a the average and p the pixel that may have been taken, c - a = b (p - a) + error. The slope b is
    1 if that pixel was taken and 0 if pixels were averaged, whatever errors lossy compression adds. It is fitted for all places
    together, for each pixel of those under c that may have been taken; the best fit counts.
    """
    ratios = _find_ratios(pixels, number)
    if round(max(ratios)) < 2:
        return False
    mixed, taken, rest = sum((_compare(pixels, number, place) for place in places), np.zeros((3, 1)))
    # Of two pixels one is as far above the average as the other is below it: only a slope above 0 says which was taken.
    slopes = np.divide(mixed, taken, out=np.zeros_like(mixed), where=(taken > 0) & (mixed > 0))
    return bool(slopes[np.argmin(rest - slopes * mixed)] > _TAKEN)


def _find_ratios(pixels: _Pixels, number: int) -> tuple[float, float]:
    """Compute how many pixels of the next finer level a pixel of this one is high and wide."""
    finer, coarser = pixels.levels[number - 1].shape, pixels.levels[number].shape
    return finer[0] / coarser[0], finer[1] / coarser[1]


def _compare(pixels: _Pixels, number: int, place: Place) -> NDArray[np.float64]:
    """Compare a place of a level with the finer level.

    Returns:
        (3, n) sums of (c - a) (p - a), (p - a)² and (c - a)², for each of the n pixels p that may have been taken, as many for
        each place.
    """
    ratios = _find_ratios(pixels, number)
    factors = [max(1, round(ratio)) for ratio in ratios]
    shifts = _list_shifts(factors, ratios)
    region = _region_at(place, pixels.levels[number], max(4, min(_PLACE_SIDE, _FINER_SIDE // max(factors))))
    seen = pixels.read(number, region)
    products = []
    # Levels whose size was rounded have either steps of the factor, or steps by which they end where the finer level does.
    for steps in (factors, ratios):
        y, x = (np.arange(*ends) * step for ends, step in zip(_sides(region), steps, strict=True))
        (y0, y1), (x0, x1) = (
            (int(starts[0]), min(int(starts[-1]) + math.ceil(step) + 1, size))
            for starts, step, size in zip((y, x), steps, pixels.levels[number - 1].shape, strict=True)
        )
        below = Region(y0, x0, y1, x1)
        if below.is_empty:
            # Steps of a factor that was rounded up lead out of the finer level: nothing explains this place.
            products += [[0.0, 0.0, np.nansum(np.square(seen, dtype=np.float64))]] * len(shifts)
            continue
        under = pixels.read(number - 1, below)
        starts = (y - y0, x - x0)
        averages = _average_known(under, starts, steps)
        rest = seen - averages
        unexplained = np.nansum(np.square(np.where(np.isnan(averages), seen, rest)))
        for shift, sides in shifts:
            taken = _take(under, starts, shift, sides) - averages
            products.append([np.nansum(rest * taken), np.nansum(taken * taken), unexplained])
    return np.array(products).T


def _list_shifts(
    factors: Sequence[int], ratios: tuple[float, float]
) -> list[tuple[tuple[float, float], tuple[int, int]]]:
    """List which pixels may have been taken: how far from the first one, and how many, along each axis.

    Shifts by half pixels, and the one to the middle, make a difference where the step isn't a whole number. Linear interpolation
    without averaging takes two by two pixels. Along the axis with the smaller factor shifts are smaller in proportion.
    """
    largest = max(factors)
    shifts: list[tuple[tuple[float, float], tuple[int, int]]] = [((ratios[0] / 2, ratios[1] / 2), (1, 1))]
    for side in (1, 2) if largest > 3 else (1,):
        sides = (min(side, factors[0]), min(side, factors[1]))
        for shift in np.arange(0, largest - side + 1, 0.5):
            y, x = (
                min(shift * factor / largest, factor - size + 0.5) for factor, size in zip(factors, sides, strict=True)
            )
            shifts.append(((y, x), sides))
    return shifts


def _average_known(pixels: Pixels, starts: tuple[Starts, Starts], steps: Sequence[float]) -> Pixels:
    """Return the means of the pixels that hold data from each start to a step further along both axes; NaN where none does."""

    def average(values: Pixels) -> Pixels:
        return _average(_average(values, starts[0], steps[0], axis=1), starts[1], steps[1], axis=2)

    missing = np.isnan(pixels)
    if not missing.any():
        return average(pixels)
    shares = average((~missing).astype(np.float32))
    sums = average(np.where(missing, np.float32(0), pixels))
    return np.divide(sums, shares, out=np.full_like(sums, np.nan), where=shares > _LEAST_SHARE)


def _average(pixels: Pixels, starts: Starts, step: float, axis: int) -> Pixels:
    """Return the means of the pixels from each start to a step further along an axis, partly covered ones in part."""
    sums = np.moveaxis(np.insert(pixels.cumsum(axis=axis, dtype=np.float64), 0, 0, axis=axis), axis, 0)
    ends = np.stack([starts, starts + step]).clip(0, len(sums) - 1)
    whole = ends.astype(int).clip(max=len(sums) - 2)
    part = (ends - whole).reshape(*ends.shape, *[1] * (sums.ndim - 1))
    low, high = sums[whole] * (1 - part) + sums[whole + 1] * part
    lengths = (ends[1] - ends[0]).reshape(-1, *[1] * (sums.ndim - 1))
    means: Pixels = np.moveaxis((high - low) / np.maximum(lengths, 1e-9), 0, axis).astype(np.float32)
    return means


def _take(pixels: Pixels, starts: tuple[Starts, Starts], shift: tuple[float, float], sides: tuple[int, int]) -> Pixels:
    """Return, for each pixel of the coarser level that begins at `starts`, the mean of some shifted pixels, mostly of one."""
    rows, columns = (
        np.clip((at + by).astype(int)[:, None] + np.arange(side), 0, size - 1).ravel()
        for at, by, side, size in zip(starts, shift, sides, pixels.shape[1:], strict=True)
    )
    taken = pixels[:, rows[:, None], columns].reshape(len(pixels), len(starts[0]), sides[0], len(starts[1]), sides[1])
    means: Pixels = taken.mean(axis=(2, 4))
    return means


def _region_at(place: Place, level: Level, side: int) -> Region:
    """Return the region of a level at a place, moved inside."""
    y, x = (max(0, min(int(share * size), size - side)) for share, size in zip(place, level.shape, strict=True))
    return Region(y, x, min(y + side, level.shape[0]), min(x + side, level.shape[1]))


def _sides(region: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    return (region.y0, region.y1), (region.x0, region.x1)
