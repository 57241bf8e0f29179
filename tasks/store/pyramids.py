"""Open what a finished result shows, level by level, finest first: pixels and labels in its store, or pixels of the slide itself.

Nothing on disk is changed by it: a damaged file is named, and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.slides.facts import Level, Slide
from slidesam.tasks.store.arrays import FAST
from slidesam.tasks.store.multiscales import LevelPlace, place_averages, place_samples, read_places
from slidesam.tasks.store.readers import read_checked


class ShownLevel(NamedTuple):
    """One resolution of an image or label image.

    Attributes:
        shape: Height and width.
        dtype: Type of the pixels.
        place: Where its pixels lie.
        read: Reads channels of a region as (y, x, c).
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    place: LevelPlace
    read: Callable[[Region, Sequence[int]], NDArray[Any]]


def open_image_levels(paths: RunPaths, slide: Slide) -> list[ShownLevel]:
    """Open the levels of the image in a result's store.

    Raises:
        OutputError: Its metadata is damaged.
    """
    return _open_levels(paths.store, paths.output, slide, place_averages)


def open_label_levels(paths: RunPaths, slide: Slide) -> list[ShownLevel]:
    """Open the levels of a result's label image, which have one channel.

    Raises:
        OutputError: Its metadata is damaged.
    """
    return _open_levels(paths.label_image, paths.output, slide, place_samples)


def _open_levels(
    folder: Path, output: Path, slide: Slide, place: Callable[[tuple[float, float]], LevelPlace]
) -> list[ShownLevel]:
    """Open the levels of a group; `place` places those for which no translation is stated, by their step."""
    try:
        group = zarr.open_group(folder, mode="r")
        places, arrays = read_places(group, slide.mpp, slide.position, place), _open_arrays(group)
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        # zarr's own words say neither what to do nor which result it is.
        raise OutputError(word_damaged_metadata(folder, output)) from error
    if len(places) != len(arrays):
        raise OutputError(word_damaged_metadata(folder, output))
    return [
        ShownLevel((array.shape[3], array.shape[4]), array.dtype, at, _StoreReader(array))
        for array, at in zip(arrays, places, strict=True)
    ]


def list_slide_levels(slide: Slide, read: Callable[[Region, int, Sequence[int]], NDArray[Any]]) -> list[ShownLevel]:
    """List the levels of a slide's own file.

    Args:
        slide: The slide.
        read: Reads channels of a region of a level, as `SlideReader.read` does.
    """
    return [
        ShownLevel(level.shape, np.dtype(slide.dtype), _place(level), _SlideLevelReader(read, number))
        for number, level in enumerate(slide.levels)
    ]


def word_damaged_metadata(damaged: Path, output: Path) -> str:
    """Describe damaged metadata of a group in an output folder, and its cure."""
    return f"{damaged} has damaged metadata: `slidesam verify {output} --repair` writes it again"


@dataclass(frozen=True)
class _StoreReader:
    array: zarr.Array[Any]

    def __call__(self, region: Region, channels: Sequence[int]) -> NDArray[Any]:
        """Read (y, x, c) pixels.

        Raises:
            OutputError: A shard is damaged.
        """
        first, last = channels[0], channels[-1]
        if tuple(channels) == tuple(range(first, last + 1)):
            return np.moveaxis(read_checked(self.array, region, slice(first, last + 1)), 0, -1)
        return np.stack([read_checked(self.array, region, channel) for channel in channels], axis=-1)


@dataclass(frozen=True)
class _SlideLevelReader:
    read: Callable[[Region, int, Sequence[int]], NDArray[Any]]
    level: int

    def __call__(self, region: Region, channels: Sequence[int]) -> NDArray[Any]:
        """Read (y, x, c) pixels."""
        return self.read(region, self.level, channels)


def _open_arrays(group: zarr.Group) -> list[zarr.Array[Any]]:
    names = sorted((name for name in group.array_keys() if name.isdigit()), key=int)
    # zarr's own codecs take an empty shard for zeros.
    with zarr.config.set(FAST if group.metadata.zarr_format == 3 else {}):
        return [zarr.open_array(group.store_path / name, mode="r") for name in names]


def _place(level: Level) -> LevelPlace:
    """Place a level of the slide's file."""
    return place_averages(level.downsample) if level.is_averaged else place_samples(level.downsample)
