"""Read a mask image that a person made of a slide: where it isn't black, the slide is segmented."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from slidesam.tasks.errors import SettingsError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.inspect import inspect_slide, inspect_source
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.source import ImageChoice
from slidesam.tasks.slides.tiff.inspect import TIFF_MAGICS
from slidesam.tasks.slides.tiff.source import TiffSpec

MAX_MASK_PIXELS = 2**27
_STRIP_PIXELS = 2**22  # of a mask image that are read at once
_PICTURES = ("PNG", "JPEG", "BMP", "TIFF")  # of the formats that Pillow reads; for some others it runs other programs
_BY_COLOUR = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # modes in which 0 isn't black


def read_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a person's own mask image of the whole slide, at any resolution.

    Args:
        path: PNG, JPEG, BMP or TIFF. Of a pyramid the finest level of at most 2²⁷ pixels is read.
        shape: Height and width of the slide's level 0.

    Returns:
        (y, x) bool, true where any channel but alpha isn't 0; of a palette its colours count.

    Raises:
        SettingsError: There is no such file, it is no image, is damaged or too large, or has another shape than the slide.
    """
    with _as_settings_errors(path), path.open("rb") as stream:
        is_tiff = stream.read(4) in TIFF_MAGICS
    with _as_settings_errors(path):
        return _read_tiff_mask(path, shape) if is_tiff else _read_picture_mask(path, shape)


def mask_identity(path: Path) -> str:
    """Return the SHA-256 of a mask image's file, hexadecimal: part of the fingerprints.

    Raises:
        SettingsError: It can't be read.
    """
    with _as_settings_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_tiff_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    slide = inspect_slide(path)
    level = next(
        (number for number, level in enumerate(slide.levels) if math.prod(level.shape) <= MAX_MASK_PIXELS), None
    )
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
    # Alpha is ignored, as in other pictures, and tiles that a sparse file leaves out aren't tissue; in a slide both are white.
    choice = ImageChoice(slide.series, slide.pages, slide.is_rgb)
    source = slide.source or inspect_source(slide.path, path.name, choice)[1]
    assert isinstance(source, TiffSpec), "it began as TIFF does"
    with SlideReader(slide.model_copy(update={"source": source.over_zero()})) as reader:
        for strip in _strips(height, width):
            pixels = reader.read(strip, level, range(slide.size_c))
            mask[strip.slices] = np.nan_to_num(pixels).any(axis=2)
    return mask


def _read_picture_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    # Pillow warns of large images; this module has its own limit.
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_PICTURES) as picture:
        width, height = picture.size
        _check_shape(path, (height, width), shape)
        picture.load()
        mask = np.empty((height, width), bool)
        for strip in _strips(height, width):
            cropped = picture.crop((strip.x0, strip.y0, strip.x1, strip.y1))
            if cropped.mode in _BY_COLOUR:
                cropped = cropped.convert("RGB")
            pixels = np.asarray(cropped).reshape(*strip.shape, -1)
            colours = [band not in ("A", "a") for band in cropped.getbands()]
            mask[strip.slices] = (pixels[..., colours] != 0).any(axis=2)
    return mask


def _check_shape(path: Path, mask: tuple[int, int], slide: tuple[int, int]) -> None:
    """Check that a mask image isn't too large, and can be of this slide.

    Raises:
        SettingsError: It is too large, or of another shape.
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
    rows = max(1, _STRIP_PIXELS // width)
    for y in range(0, height, rows):
        yield Region(y, 0, min(y + rows, height), width)


@contextmanager
def _as_settings_errors(path: Path) -> Iterator[None]:
    """Turn any error of a library that reads a mask image into a SettingsError of one line."""
    try:
        yield
    except (SettingsError, MemoryError):
        # Memory isn't the setting's fault: another attempt may have enough.
        raise
    # Pillow, tifffile and their codecs raise what they like on a damaged file.
    except Exception as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else in_one_line(error, 160)
        if isinstance(error, UnidentifiedImageError):
            reason = "it isn't an image"
        raise SettingsError(
            f"setting blocks.tissue: mask image {path} can't be read ({reason}): give the path of a PNG, JPEG or TIFF "
            "image, or set it to auto or off"
        ) from error
