"""Which blocks of a slide hold anything but background, so that the others needn't be segmented.

1. `find_tissue` tells what isn't background on a coarse image of the slide.
2. `read_mask` reads a person's own mask image instead; `mask_identity` is its hash.
3. `blocks_with_tissue` turns either into block ids.

A block kept for nothing costs time, a block left out may cost an object. So a pixel is background only where that can be told,
nothing is dropped for its size (an isolated cell may be smaller than a pixel of the coarse image), and where no background can
be made out everything is tissue.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from slidesam.tasks.errors import SettingsError, in_one_line
from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader

MAX_MASK_PIXELS = 2**27
_MASK_STRIP = 2**22  # pixels of a mask image that are looked at at once
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = ("PNG", "JPEG", "BMP", "TIFF")  # of what Pillow reads; some of the rest runs other programs
_BY_COLOUR = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # modes in which 0 isn't black

_MARGIN = 2  # pixels of the coarse image by which tissue is grown
_SIGMAS = 5.0
_HALF_NORMAL = 0.6745  # median of a half normal distribution, in sigmas
_SAMPLE = 2**20  # pixels by which a distribution is judged
_SURROUNDINGS = 33  # side of the square over which a pixel's surroundings are averaged
_PEAK_SHARE = 0.02  # of the pixels: what is rarer is no background
_NO_NUMBER = 1e30  # from here on a value says that there is none, as inf does
# Of white: how dark and how coloured glass may be, and how noisy.
_GLASS_DEPTH, _GLASS_TINT, _GLASS_NOISE = 0.4, 0.12, 0.006
_GLASS_SHARE = 0.01  # of the pixels that glass must have
# Of a dark background: how noisy it may be for its level without the bright being as many times brighter, and their share.
_EVEN, _CONTRAST, _BRIGHT_SHARE = 0.05, 5.0, 0.001


class _Looks(NamedTuple):
    """How background looks in a kind of image, as differences of pixel values and shares of pixels.

    Attributes:
        step: The smallest difference that means anything.
        least: Tissue stands out by more than this, however even the background is.
        most: What stands out by this is tissue, however uneven the background is.
        faint: As `least`, averaged over two by two pixels and compared with the surroundings.
        end: Up to here from 0 (from white in bright field) a value may be what the scanner filled in.
        filled: Share of the pixels up to which those at the end may be filled in and not background.
        even: A background apart from what was filled in has a sigma of at most this.
        below: Share of the pixels that may lie further below the background than tissue lies above it.
        both_ways: Whether what lies below background is tissue too.
    """

    step: float
    least: float
    most: float
    faint: float
    end: float
    filled: float
    even: float
    below: float
    both_ways: bool


@dataclass(frozen=True)
class _Background:
    """What may be background in one channel.

    Attributes:
        signal: (y, x) the channel, in which background is low.
        level: The background's value.
        reach: What stands out from it by more is tissue.
        near: (y, x) bool: what doesn't.
    """

    signal: NDArray[np.float32]
    level: float
    reach: float
    near: NDArray[np.bool_]

    @cached_property
    def steps(self) -> float:
        """Mean difference between near pixels that are neighbours."""
        both = self.near[:, 1:] & self.near[:, :-1]
        return float(np.abs(np.diff(self.signal, axis=1))[both].mean()) if both.any() else 0.0

    @cached_property
    def rest(self) -> NDArray[np.float32]:
        """(y, x) near pixels less the mean of those around them; 0 elsewhere."""
        weights = ndimage.uniform_filter(self.near.astype(np.float32), _SURROUNDINGS)
        means = ndimage.uniform_filter(np.where(self.near, self.signal, np.float32(0)), _SURROUNDINGS)
        means /= np.maximum(weights, np.float32(1e-6))
        return np.where(self.near, self.signal - means, np.float32(0))

    def standing_out(self, looks: _Looks) -> NDArray[np.bool_]:
        """(y, x) bool: what is tissue if this is background."""
        away = self.signal - self.level
        if looks.both_ways:
            away = np.where(self.signal == 0, np.float32(0), np.abs(away))
        tissue: NDArray[np.bool_] = away > self.reach
        if math.isfinite(looks.faint):
            # An isolated cell may be split between four pixels.
            faint = ndimage.uniform_filter(self.rest, 2)
            limit = max(_SIGMAS * _spread(faint[self.near]), looks.faint)
            tissue |= (np.abs(faint) if looks.both_ways else faint) > limit
        return tissue


def find_tissue(overview: NDArray[Any], *, is_rgb: bool) -> NDArray[np.bool_]:
    """Where a slide isn't background.

    Glass is the brightest bright grey that many pixels have, the background of fluorescence the darkest value that many have.
    Tissue stands out from it by five times its noise, or, fainter, from its surroundings. It is grown by two pixels.

    - Where there is no such background, or too little stands out to tell it from even tissue, everything is tissue.
    - Bright field: black is where nothing was scanned; white, and whatever is brighter than glass, isn't tissue either.
    - Fluorescence: pixels of value 0 aren't tissue. Saturated ones are, since cells may be. What is darker than the background
      is too, since a grey image may show dark objects.
    - One value all over is no tissue, unless in bright field glass can't have it.
    - Values that aren't numbers aren't tissue.

    Args:
        overview: (y, x, c) coarse image of any dtype; in fluorescence the channels that are segmented.
        is_rgb: Whether background is bright (glass) rather than dark.

    Returns:
        (y, x) bool.

    Example:
        >>> slide = np.full((20, 20, 3), 240, np.uint8)
        >>> slide[10, 10] = 230, 225, 235
        >>> int(find_tissue(slide, is_rgb=True).sum())
        25
    """
    if np.issubdtype(overview.dtype, np.floating):
        with np.errstate(over="ignore"):
            overview = overview.astype(np.float32)
        overview = np.where(np.abs(overview) < _NO_NUMBER, overview, np.float32(np.nan))
    shown = (np.isfinite(overview) & (overview != 0)).any(axis=2)
    found = _darker_than_glass(overview, shown) if is_rgb else _brighter_than_dark(overview)
    tissue = shown if found is None else found & shown
    grown: NDArray[np.uint8] = ndimage.maximum_filter(tissue.astype(np.uint8), 2 * _MARGIN + 1)
    return grown > 0


def read_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A person's own mask image of the whole slide, at any resolution.

    Args:
        path: PNG, JPEG, BMP or TIFF. Of a pyramid the finest level of at most 2²⁷ pixels is read.
        shape: Height and width of the slide's level 0.

    Returns:
        (y, x) bool, true where any channel but alpha isn't 0; of a palette its colours count.

    Raises:
        SettingsError: There is no such file, it is no image, is damaged or too large, or has another shape than the slide.
    """
    with _as_settings_errors(path), path.open("rb") as stream:
        is_tiff = stream.read(4) in _TIFF_MAGICS
    with _as_settings_errors(path):
        return _read_tiff_mask(path, shape) if is_tiff else _read_picture_mask(path, shape)


def mask_identity(path: Path) -> str:
    """SHA-256 of a mask image's file, hexadecimal: part of the fingerprints.

    Raises:
        SettingsError: It can't be read.
    """
    with _as_settings_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def blocks_with_tissue(mask: NDArray[np.bool_], grid: BlockGrid) -> list[int]:
    """Blocks that see tissue.

    Args:
        mask: (y, x) bool over the grid's whole shape, at any resolution.
        grid: The blocks.

    Returns:
        Ascending ids of the blocks whose outer region meets a pixel of the mask, be it by a corner.

    Example:
        >>> mask = np.zeros((10, 10), bool)
        >>> mask[2, 9] = True
        >>> blocks_with_tissue(mask, BlockGrid((1000, 1000), (250, 250), 0))
        [3, 7]
    """
    rows, columns = (_reached(mask, grid, axis) for axis in (0, 1))
    # Between two ends of blocks it is all the same where tissue is: what is left to count is small, however fine the mask.
    cuts_y, cuts_x = (np.unique(np.concatenate(ends)) for ends in (rows, columns))
    cells = np.logical_or.reduceat(np.logical_or.reduceat(mask, cuts_y[:-1], axis=0), cuts_x[:-1], axis=1)
    sums = np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    y0, y1 = (np.searchsorted(cuts_y, ends)[:, None] for ends in rows)
    x0, x1 = (np.searchsorted(cuts_x, ends)[None, :] for ends in columns)
    counts = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    found: list[int] = np.flatnonzero(counts).tolist()
    return found


def _reached(mask: NDArray[np.bool_], grid: BlockGrid, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 row (or column) of the mask that each row of blocks sees, partly seen ones included."""
    size, block, pixels = grid.shape[axis], grid.block_shape[axis], mask.shape[axis]
    starts = np.arange(grid.grid_shape[axis], dtype=np.int64) * block
    first = np.maximum(starts - grid.halo, 0) * pixels // size
    stop = -(-np.minimum(starts + block + grid.halo, size) * pixels // size)
    return first, stop


def _read_tiff_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    slide = inspect_slide(path)
    level = next((at for at, each in enumerate(slide.levels) if math.prod(each.shape) <= MAX_MASK_PIXELS), None)
    height, width = slide.levels[-1 if level is None else level].shape
    _check_shape(path, (height, width), shape)
    assert level is not None, "else it would have been too large"
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        # Of a palette colours count, unless it is one in which ImageJ shows values. Values count where "0 is white" too:
        # ImageJ and tifffile write that of masks in which 0 is background.
        has_palette = page.photometric == 3 and not tiff.is_imagej
    if has_palette:
        return _read_picture_mask(path, shape)
    mask = np.empty((height, width), bool)
    with SlideReader(slide) as reader:
        for strip in _strips(height, width):
            pixels = reader.read(strip, level, range(slide.size_c))
            mask[strip.slices] = np.nan_to_num(pixels).any(axis=2)
    return mask


def _read_picture_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    # Pillow warns of large images; which are too large is decided here.
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_PICTURES) as picture:
        width, height = picture.size
        _check_shape(path, (height, width), shape)
        picture.load()
        mask = np.empty((height, width), bool)
        for strip in _strips(height, width):
            part = picture.crop((strip.x0, strip.y0, strip.x1, strip.y1))
            if part.mode in _BY_COLOUR:
                part = part.convert("RGB")
            pixels = np.asarray(part).reshape(*strip.shape, -1)
            colours = [band not in ("A", "a") for band in part.getbands()]
            mask[strip.slices] = (pixels[..., colours] != 0).any(axis=2)
    return mask


def _check_shape(path: Path, mask: tuple[int, int], slide: tuple[int, int]) -> None:
    """Refuses a mask image that is too large, or that can't be of this slide.

    Raises:
        SettingsError: It is.
    """
    if not 0 < math.prod(mask) <= MAX_MASK_PIXELS:
        raise SettingsError(
            f"setting blocks.tissue: mask image {path} has {mask[0]} × {mask[1]} px: make it smaller, at most "
            f"{MAX_MASK_PIXELS} px in all; it may be much coarser than the slide"
        )
    # Either side may be the one that was rounded.
    height, width = mask[1] * slide[0] / slide[1], mask[0] * slide[1] / slide[0]
    if abs(mask[0] - height) > max(1, 0.01 * height) and abs(mask[1] - width) > max(1, 0.01 * width):
        raise SettingsError(
            f"setting blocks.tissue: mask image {path} of {mask[0]} × {mask[1]} px (height × width) has another shape than "
            f"the slide of {slide[0]} × {slide[1]} px: make one of the whole slide, not turned or cropped, or set it to auto"
        )


def _strips(height: int, width: int) -> Iterator[Region]:
    rows = max(1, _MASK_STRIP // width)
    for y in range(0, height, rows):
        yield Region(y, 0, min(y + rows, height), width)


@contextmanager
def _as_settings_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library says of a mask image into one line."""
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        what = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else in_one_line(error, 160)
        if isinstance(error, UnidentifiedImageError):
            what = "it isn't an image"
        raise SettingsError(
            f"setting blocks.tissue: mask image {path} can't be read ({what}): give the path of a PNG, JPEG or TIFF "
            "image, or set it to auto or off"
        ) from error


def _darker_than_glass(overview: NDArray[Any], shown: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """(y, x) bool: what is darker than glass in any colour; None where there is no glass."""
    white = _white(overview)
    looks = _Looks(
        step=_step(overview),
        least=0.02 * white,
        most=0.06 * white,
        faint=0.004 * white,
        end=0.01 * white,
        filled=1.0,
        even=0.006 * white,
        # Sharpening makes some of the glass beside tissue brighter.
        below=0.05,
        both_ways=False,
    )
    colours = [overview[..., channel] for channel in range(overview.shape[2])]
    darkest, brightest = reduce(np.minimum, colours), reduce(np.maximum, colours)
    greyish = (darkest >= (1 - _GLASS_DEPTH) * white) & (brightest - darkest <= _GLASS_TINT * white)
    enough = max(1.0, _GLASS_SHARE * np.count_nonzero(shown))

    def is_common(ground: _Background) -> bool:
        return int(np.count_nonzero(ground.near & greyish)) >= enough

    def is_glass(ground: _Background) -> bool:
        # Pale tissue is restless beside it.
        return is_common(ground) and _spread(ground.rest) <= _GLASS_NOISE * white

    grey = reduce(np.add, (colour.astype(np.float32) for colour in colours)) / np.float32(len(colours))
    ground = _background(white - grey, greyish, looks, is_glass)
    if ground is None:
        return None
    tissue = ground.standing_out(looks)
    for colour in colours:
        ground = _background(white - colour.astype(np.float32), greyish, looks, is_common)
        if ground is None:
            return None
        # JPEG makes steps of a few grey levels in colours, but hardly in their mean: what is faint was looked for there.
        tissue |= ground.standing_out(looks._replace(faint=math.inf))
    # JPEG's black isn't always 0.
    return tissue & (brightest > looks.end)


def _brighter_than_dark(overview: NDArray[Any]) -> NDArray[np.bool_] | None:
    """(y, x) bool: what isn't as dark as the background in any channel; None where one has no dark background."""
    step = _step(overview)
    looks = _Looks(
        step=step,
        least=step,
        most=math.inf,
        faint=0.4 * step,
        end=0.0,
        # Where zeros are more than that, what isn't zero may all be objects.
        filled=0.5,
        even=math.inf,
        below=0.005,
        both_ways=True,
    )
    tissue = np.zeros(overview.shape[:2], bool)
    for channel in range(overview.shape[2]):
        signal = overview[..., channel].astype(np.float32)
        finite = np.isfinite(signal)
        if not finite.any():
            continue
        ground = _background(signal, finite, looks, _is_dark)
        if ground is None:
            return None
        tissue |= ground.standing_out(looks)
    return tissue


def _is_dark(ground: _Background) -> bool:
    """Whether what may be the background of fluorescence isn't even tissue: dense one seen coarsely is much like noise."""
    is_even = _spread(ground.rest) <= _EVEN * abs(ground.level)
    bright = max(ground.level + 2 * ground.reach, -math.inf if is_even else _CONTRAST * ground.level)
    if np.count_nonzero(ground.signal > bright) >= _BRIGHT_SHARE * ground.signal.size:
        return True
    # An empty channel: neighbours are no more alike than any two.
    return is_even and ground.steps >= float(np.abs(ground.rest[ground.near]).mean())


def _background(
    signal: NDArray[np.float32],
    candidates: NDArray[np.bool_],
    looks: _Looks,
    is_background: Callable[[_Background], bool],
) -> _Background | None:
    """The background of one channel.

    Args:
        signal: (y, x), low in the background.
        candidates: (y, x) bool: which pixels it is looked for in.
        looks: How it looks.
        is_background: Whether what may be background is.
    """
    stride = _stride(signal.size)
    values = signal[::stride, ::stride][candidates[::stride, ::stride]]
    inside = values[np.abs(values) > looks.end]
    if 0 < inside.size < values.size:
        # What the scanner filled in may be most of the pixels, and no background.
        level, reach, is_apart = _level(inside, looks)
        is_apart &= inside.size >= (1 - looks.filled) * values.size
        ground = _Background(signal, level, reach, (signal <= level + reach) & (np.abs(signal) > looks.end))
        if is_apart and is_background(ground):
            return ground
    if not values.size:
        return None
    level, reach, _ = _level(values, looks)
    ground = _Background(signal, level, reach, signal <= level + reach)
    is_lowest = np.mean(values < level - reach) <= looks.below
    return ground if is_lowest and is_background(ground) else None


def _level(values: NDArray[np.float32], looks: _Looks) -> tuple[float, float, bool]:
    """Level and reach of what may be background, and whether it is apart from what the scanner filled in."""
    level, sigma = _lowest_peak(values, looks.step)
    reach = min(max(_SIGMAS * sigma, looks.least), looks.most)
    is_most = np.mean(np.abs(values - level) <= reach) >= 0.5 and np.mean(values < level - reach) <= looks.below
    return level, reach, bool(level > 8 * sigma and sigma <= looks.even and is_most)


def _lowest_peak(values: NDArray[np.float32], step: float) -> tuple[float, float]:
    """The lowest value around which many lie, and the standard deviation of those below it.

    A histogram would need bins that suit both a narrow background and a wide range; so this asks instead how close together
    two percent of the pixels lie.

    Args:
        values: (n,), at least one.
        step: What equal values are spread over.
    """
    ends, shares = _distribution(values, step)
    starts = np.linspace(0, 1 - _PEAK_SHARE, 1000)
    widths = np.interp(starts + _PEAK_SHARE, shares, ends) - np.interp(starts, shares, ends)
    # The first peak ends where they lie twice as far apart; values that are left out by stretched contrast end none.
    risen = np.flatnonzero(widths > 2 * np.minimum.accumulate(widths) + 2 * step)
    widths = widths[: risen[0] if risen.size else None]
    # The middle of where they lie about as close: where they are closest is up to chance.
    peak = int(widths.argmin())
    wide = np.flatnonzero(widths > 1.25 * widths[peak])
    first = max(wide[wide < peak], default=-1) + 1
    last = min(wide[wide > peak], default=widths.size) - 1
    level = float(np.interp((starts[first] + starts[last] + _PEAK_SHARE) / 2, shares, ends))
    below = float(np.interp(level, ends, shares))
    return level, (level - float(np.interp(below / 2, shares, ends))) / _HALF_NORMAL


def _distribution(values: NDArray[np.float32], step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ascending values and the share of pixels below each.

    Equal values are spread over the step around them; over up to two where stretched contrast leaves values out.
    """
    found, counts = np.unique(values.astype(np.float64), return_counts=True)
    margins = np.minimum(np.diff(found), 2 * step) / 2
    ends = np.column_stack([found - np.append(step / 2, margins), found + np.append(margins, step / 2)])
    shares = np.cumsum(counts) / values.size
    return ends.ravel(), np.column_stack([np.append(0, shares[:-1]), shares]).ravel()


def _spread(rest: NDArray[np.float32]) -> float:
    """Standard deviation by what lies below zero, which faint tissue doesn't widen."""
    low = rest[rest < 0]
    low = low[:: max(1, low.size // _SAMPLE)]
    return float(np.median(-low)) / _HALF_NORMAL if low.size else 0.0


def _white(overview: NDArray[Any]) -> float:
    """The value of white: the largest of as many bits as are used, 1 for floats up to it."""
    top = float(np.max(overview, initial=0, where=np.isfinite(overview)))
    if top <= 1 and np.issubdtype(overview.dtype, np.floating):
        return 1.0
    return next((1.0 * white for white in (255, 1023, 4095, 16383, 65535) if top <= white), top)


def _step(overview: NDArray[Any]) -> float:
    """The smallest difference of values that means anything: of integers 1, more where values are left out."""
    stride = _stride(overview.shape[0] * overview.shape[1])
    values = overview[::stride, ::stride]
    values = values[np.isfinite(values)].astype(np.float64)
    found = np.unique(values)
    if not found.size:
        return 1.0
    # Of few values the gaps say nothing.
    gap = float(np.diff(found).min()) if found.size >= 32 else 0.0
    if np.issubdtype(overview.dtype, np.integer):
        return max(gap, 1.0)
    low, high = (float(end) for end in np.quantile(values, (0.001, 0.999)))
    return max(gap, (high - low) / 2**16, 1e-6 * abs(high), 1e-30)


def _stride(pixels: int) -> int:
    """The step along y and x that leaves about `_SAMPLE` of so many pixels."""
    return max(1, math.isqrt(pixels // _SAMPLE))
