"""The image that the output store holds beside the labels, where the slide isn't converted: its coarse levels, at true scale.

The source's first level that fits in `OVERVIEW_SIDE` pixels, all channels, and averages of it further down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.omezarr import (
    create_plane_array,
    create_store,
    describe_image,
    level_shapes,
    listed_labels,
    remove_image,
    write_plane,
)
from slidesam.tasks.pyramid import average, overview_level, read_overview
from slidesam.tasks.segment import finite_percentiles
from slidesam.tasks.slide import Slide
from slidesam.tasks.work import Run

_RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
_CHANNEL_COLOURS = ("0000FF", "00FF00", "FF0000", "00FFFF", "FF00FF", "FFFF00", "FFFFFF")
_SOURCE_KEY = "slidesam_image"


def publish_image(run: Run) -> None:
    """Writes the store's image, unless it already shows this very slide.

    Raises:
        OutputError: The store can't be written, isn't slidesam's, or holds labels of another slide or plane.
        SlideError: The slide's pixels can't be read.
    """
    root = create_store(run.store, run.settings.image, run.slide.path)
    slide = run.slide
    shown: dict[str, Any] = {
        "slide": slide.identity.model_dump(mode="json"),
        "plane": [slide.series, slide.t, slide.z, slide.mpp],
    }
    before: Any = root.attrs.get(_SOURCE_KEY)
    if before == shown:
        return
    _refuse_to_mix(run, root, before)
    remove_image(root)
    root.attrs.pop(_SOURCE_KEY, None)
    n_levels, windows = _write_levels(root, run)
    base_y, base_x = published_scale(run)
    downsamples = [(base_y * 2**level, base_x * 2**level) for level in range(n_levels)]
    describe_image(root, run.name, downsamples, slide.mpp, _omero(slide, windows))
    root.attrs[_SOURCE_KEY] = shown


def _refuse_to_mix(run: Run, root: zarr.Group, before: Any) -> None:
    """A store shows one plane of one slide: labels of another would lie on a grid that isn't its image's."""
    others = [label for label in listed_labels(root) if label != run.label]
    if before is None or not others:
        return
    raise OutputError(
        f"{run.store} holds labels ({', '.join(others)}) of {before['slide']['path']} as it was, or of another plane of it: "
        "choose another output folder, or move this one away"
    )


def read_published(run: Run, channels: tuple[int, ...], level: int = 0) -> NDArray[Any]:
    """(y, x, c) pixels of a level of the store's image."""
    array = zarr.open_array(run.store / str(level), mode="r")
    return np.stack([np.asarray(array[0, channel, 0]) for channel in channels], axis=-1)


def published_scale(run: Run) -> tuple[float, float]:
    """Rows and columns of the slide's level 0 per pixel of the store's level 0."""
    level, factor = overview_level(run.slide)
    down_y, down_x = run.slide.levels[level].downsample
    return down_y * factor, down_x * factor


def _write_levels(root: zarr.Group, run: Run) -> tuple[int, list[tuple[float, float]]]:
    """Writes all levels, channel by channel so that memory stays bounded; their number, and display windows per channel."""
    slide, n_channels = run.slide, run.slide.size_c
    groups = [tuple(range(n_channels))] if slide.is_rgb else [(channel,) for channel in range(n_channels)]
    arrays: list[zarr.Array[Any]] = []
    windows: list[tuple[float, float]] = []
    for group in groups:
        pixels = read_overview(slide, group)
        shapes = level_shapes((pixels.shape[0], pixels.shape[1]))
        if not arrays:
            arrays = [
                create_plane_array(
                    root, str(level), (1, n_channels, 1, *shape), pixels.dtype, _shard(shape), run.settings.image
                )
                for level, shape in enumerate(shapes)
            ]
        windows += [_window(pixels[..., i]) for i in range(len(group))]
        for array in arrays:
            for i, channel in enumerate(group):
                write_plane(array, Region(0, 0, *pixels.shape[:2]), pixels[..., i], channel)
            pixels = average(pixels, 2)
    return len(arrays), windows


def _shard(shape: tuple[int, int]) -> tuple[int, int]:
    """One shard for the whole plane: whole chunks of 256 and more."""
    height, width = (-(-size // 512) * 512 for size in shape)
    return height, width


def _window(pixels: NDArray[Any]) -> tuple[float, float]:
    low, high = finite_percentiles(pixels[::4, ::4], (0.1, 99.9))
    return low, max(high, low + 1)


def _omero(slide: Slide, windows: list[tuple[float, float]]) -> dict[str, Any]:
    """Channel names, colours and display windows, for viewers."""
    colours = _RGB_COLOURS if slide.is_rgb else _CHANNEL_COLOURS
    dtype = np.dtype(slide.dtype)
    integer = np.issubdtype(dtype, np.integer)
    low, high = (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if integer else (0.0, 1.0)
    channels = []
    for channel, (name, window) in enumerate(zip(slide.channel_names, windows, strict=True)):
        start, end = (low, high) if slide.is_rgb and dtype == np.uint8 else window
        channels.append(
            {
                "label": name,
                "color": colours[channel % len(colours)],
                "active": channel < len(colours),
                "window": {"min": min(low, start), "max": max(high, end), "start": start, "end": end},
            }
        )
    return {"channels": channels, "rdefs": {"model": "color"}}
