"""Find out whether a slide's coarser levels average pixels or only take some of them ("nearest neighbour", decimation).

Most scanners and converters average. ome-zarr-py's default, `image[::2, ::2]` and some others take one pixel of many: cells that
are smaller than what is left out then vanish from coarse levels, on which nobody should look for tissue. No metadata tells, so a
few places of each level are compared with both ways of making them from the next finer level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Level, Slide
from slidesam.tasks.slides.reader import SlideReader

_N_PLACES = 3
_PLACE_SIDE, _FINER_SIDE = 32, 512  # most pixels of a place, on the level and on the finer one
_WHOLE_SIDE = 2048  # a level of this size is looked at whole to choose the places
_TAKEN = 0.5  # slope from which on pixels count as taken

Place = tuple[float, float]
Pixels = NDArray[np.float32]
Starts = NDArray[np.floating[Any]]


def mark_decimated(slide: Slide) -> Slide:
    """Mark the levels that only take some pixels of level 0, or are made from such a level.

    Reads some thousand pixels of each level. Where pixels can't be decoded, or are all alike, nothing is marked.

    Args:
        slide: A slide as it was inspected.
    """
    if len(slide.levels) == 1:
        return slide
    try:
        with SlideReader(slide) as reader:
            first = _find_first_decimated(reader)
    except SlideError:
        return slide
    levels = (
        *slide.levels[:first],
        *(level.model_copy(update={"is_averaged": False}) for level in slide.levels[first:]),
    )
    return slide.model_copy(update={"levels": levels})


def _find_first_decimated(reader: SlideReader) -> int:
    """Find the finest level that is decimated; return the number of levels if there is none."""
    n_levels = len(reader.slide.levels)
    places = _choose_places(reader)
    return next((level for level in range(1, n_levels) if _is_decimated(reader, level, places)), n_levels)


def _choose_places(reader: SlideReader) -> list[Place]:
    """Choose the places with the most contrast, as shares of height and width, on the coarsest level that has any."""
    for number in reversed(range(len(reader.slide.levels))):
        contrasts = {place: contrast for place, contrast in _measure_contrast(reader, number) if contrast > 0}
        if contrasts:
            return sorted(contrasts, key=lambda place: -contrasts[place])[:_N_PLACES]
    return []


def _measure_contrast(reader: SlideReader, number: int) -> Iterator[tuple[Place, float]]:
    """Yield places of a level, all over it or, if it is large, on a grid; and how much their pixels vary."""
    height, width = reader.slide.levels[number].shape
    whole = _read(reader, number, Region(0, 0, height, width)) if max(height, width) <= _WHOLE_SIDE else None
    steps = [_PLACE_SIDE, _PLACE_SIDE] if whole is not None else [-(-height // 4), -(-width // 4)]
    for y in range(0, height, steps[0]):
        for x in range(0, width, steps[1]):
            region = Region(y, x, min(y + _PLACE_SIDE, height), min(x + _PLACE_SIDE, width))
            pixels = _read(reader, number, region) if whole is None else whole[(..., *region.slices)]
            yield (y / height, x / width), float(pixels.std(axis=(1, 2)).sum())


def _is_decimated(reader: SlideReader, number: int, places: list[Place]) -> bool:
    """Whether what a level has beyond averages of the next finer level is what single pixels of that have beyond them.

    With c a pixel of the level, a the average and p the pixel that may have been taken, c - a = b (p - a) + error. The slope b is
    1 if that pixel was taken and 0 if pixels were averaged, whatever errors lossy compression adds. It is fitted for all places
    together, for each pixel of those under c that may have been taken; the best fit counts.
    """
    finer, coarser = reader.slide.levels[number - 1], reader.slide.levels[number]
    factor = round(max(of / to for of, to in zip(finer.shape, coarser.shape, strict=True)))
    if factor < 2:
        return False
    mixed, taken, rest = sum((_compare(reader, number, place, factor) for place in places), np.zeros((3, 1)))
    slopes = np.divide(mixed, taken, out=np.zeros_like(mixed), where=taken > 0)
    return bool(slopes[np.argmin(rest - slopes * mixed)] > _TAKEN)


def _compare(reader: SlideReader, number: int, place: Place, factor: int) -> NDArray[np.float64]:
    """Compare a place of a level with the finer level.

    Returns:
        (3, n) sums of (c - a) (p - a), (p - a)² and (c - a)², for each of the n pixels p that may have been taken.
    """
    finer, coarser = reader.slide.levels[number - 1], reader.slide.levels[number]
    region = _region_at(place, coarser, max(4, min(_PLACE_SIDE, _FINER_SIDE // factor)))
    pixels = _read(reader, number, region)
    products = []
    # Levels whose size was rounded have either steps of the factor, or steps by which they end where the finer level does.
    for is_exact in (True, False):
        steps = [factor if is_exact else of / to for of, to in zip(finer.shape, coarser.shape, strict=True)]
        y, x = (np.arange(*ends) * step for ends, step in zip(_sides(region), steps, strict=True))
        first_y, first_x = int(y[0]), int(x[0])
        below = Region(
            first_y, first_x, min(int(y[-1]) + factor + 1, finer.shape[0]), min(int(x[-1]) + factor + 1, finer.shape[1])
        )
        if below.is_empty:
            continue
        under = _read(reader, number - 1, below)
        starts = (y - first_y, x - first_x)
        averages = _average(_average(under, starts[0], steps[0], axis=1), starts[1], steps[1], axis=2)
        rest = pixels - averages
        # Shifts by half pixels make a difference where the step isn't a whole number. Linear interpolation without averaging
        # takes two by two pixels.
        for side in (1, 2) if factor > 3 else (1,):
            for shift in np.arange(0, factor - side + 1, 0.5):
                taken = _take(under, starts, shift, side) - averages
                products.append([(rest * taken).sum(), (taken * taken).sum(), (rest * rest).sum()])
    return np.array(products).T


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


def _take(pixels: Pixels, starts: tuple[Starts, Starts], shift: float, side: int) -> Pixels:
    """Return, for each pixel of the coarser level that begins at `starts`, the mean of some shifted pixels, mostly of one."""
    rows, columns = (
        np.clip((at + shift).astype(int)[:, None] + np.arange(side), 0, size - 1).ravel()
        for at, size in zip(starts, pixels.shape[1:], strict=True)
    )
    taken = pixels[:, rows[:, None], columns].reshape(len(pixels), len(starts[0]), side, len(starts[1]), side)
    means: Pixels = taken.mean(axis=(2, 4))
    return means


def _region_at(place: Place, level: Level, side: int) -> Region:
    """Return the region of a level at a place, moved inside."""
    y, x = (max(0, min(int(share * size), size - side)) for share, size in zip(place, level.shape, strict=True))
    return Region(y, x, min(y + side, level.shape[0]), min(x + side, level.shape[1]))


def _sides(region: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    return (region.y0, region.y1), (region.x0, region.x1)


def _read(reader: SlideReader, number: int, region: Region) -> Pixels:
    """Read (c, y, x) pixels of at most three of the channels to segment; 0 where there is no number."""
    pixels = reader.read_planes(region, number, reader.slide.channels[:3])
    return np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
