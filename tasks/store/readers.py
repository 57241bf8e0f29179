"""Open the pixels of a run: of the slide itself, or as they were converted or rechunked."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.resample import LevelReader, ScaledReader
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.reader import PixelReader, SlideReader
from slidesam.tasks.store.arrays import find_damaged_shards, open_level, read_whole
from slidesam.tasks.store.image import check_shown


class ArrayReader:
    """Reads regions of a TCZYX array's first plane.

    Args:
        array: The array.
        channels: Which of its channels.
    """

    def __init__(self, array: zarr.Array[Any], channels: tuple[int, ...]) -> None:
        self._array, self._channels = array, channels

    def read(self, region: Region) -> NDArray[Any]:
        """Read (y, x, c) pixels of a region, C-contiguous."""
        pixels = np.empty((*region.shape, len(self._channels)), self._array.dtype)
        for number, channel in enumerate(self._channels):
            pixels[..., number] = read_whole(self._array, region, channel)
        return pixels

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def read_checked(array: zarr.Array[Any], region: Region, channel: int | slice = 0) -> NDArray[Any]:
    """Read a region of the first plane of a finished array, and change nothing.

    Args:
        array: TCZYX; or of other axes, whose last two are y and x.
        region: Pixels, inside it.
        channel: Of TCZYX.

    Raises:
        OutputError: It is damaged.
    """
    index: tuple[Any, ...] = (0, channel, 0) if array.ndim == 5 else (0,) * (array.ndim - 2)
    damaged = find_damaged_shards(array, region, channel) if array.ndim == 5 else []
    if damaged:
        raise OutputError(f"{damaged[0]} is damaged", "`slidesam verify --repair` takes it back, to be made again")
    try:
        return np.asarray(array[(*index, *region.slices)])
    except (RuntimeError, ValueError) as error:
        raise OutputError(
            f"{array.store_path} is damaged ({in_one_line(error)})",
            "`slidesam verify` on the output folder names the files",
        ) from error


def open_pixels(run: Run) -> PixelReader:
    """Open what the blocks are read from, in segmented pixels.

    The converted or rechunked pixels, or the slide itself: on level 0 they hold the same.
    """
    if run.scale.is_one:
        return _open_level0(run)
    level = run.segmented_level
    if run.image_plan.mode == "convert":
        shape, steps = run.image_plan.levels[level].shape, (2.0**level, 2.0**level)
        reader = _open_converted(run, run.slide.channels, level)
    elif level == 0:
        shape, steps, reader = run.slide.shape, (1.0, 1.0), _open_level0(run)
    else:
        slide = SlideReader(run.slide)
        shape, steps = run.slide.levels[level].shape, run.slide.levels[level].downsample
        reader = LevelReader(slide.read, level, slide.close)
    factor = run.scale.factor
    return ScaledReader(reader, shape, (factor[0] / steps[0], factor[1] / steps[1]))


def _open_level0(run: Run) -> PixelReader:
    match run.image_plan.mode:
        case "convert":
            return _open_converted(run, run.slide.channels)
        case "rechunk":
            array = open_level(run.image_folder.pixels / "0", "0.5")
            return ArrayReader(array, tuple(range(len(run.slide.channels))))
        case _:
            return SlideReader(run.slide)


def open_display(run: Run, channels: tuple[int, ...]) -> PixelReader:
    """Open what pictures are made from, with any channels: converted pixels if they exist, else the slide."""
    if run.image_plan.mode == "convert":
        return _open_converted(run, channels)
    return SlideReader(run.slide.model_copy(update={"channels": channels}))


def _open_converted(run: Run, channels: tuple[int, ...], level: int = 0) -> PixelReader:
    check_shown(run)
    return ArrayReader(open_level(run.store / str(level), run.settings.image.ome_zarr), channels)
