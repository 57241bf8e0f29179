"""Rewrite a slide's pixels tile by tile: as an OME-Zarr pyramid, or rechunked for the blocks to read.

1. `ready_arrays`   empty arrays
2. `write_tile`    one tile of level 0 with the levels that it fills, or one shard of a level above
3. `complete_image`   what makes the arrays an image

A tile is read once and written as whole shards by one task; `image_plan` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.plan import shard_region
from slidesam.tasks.pixels.pyramid import halve, halve_region
from slidesam.tasks.run.files import write_json
from slidesam.tasks.run.marks import Marks, remove_stage
from slidesam.tasks.run.records import Mark, StageMark
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store.image import is_filling, is_shown, prepare_store, record_filling, show_image
from slidesam.tasks.store.multiscales import place_averages
from slidesam.tasks.store.ome_zarr import create_plane_array, open_level, write_shards

_BAND_ROWS = 256


def is_ready(run: Run) -> bool:
    """Whether the store has its image, and the rechunked pixels exist if the plan needs them."""
    rechunked = StageMark.read(run.image_folder.pixels_mark) is not None and run.image_folder.pixels.is_dir()
    return is_shown(run) and (run.image_plan.mode != "rechunk" or rechunked)


def ready_arrays(run: Run) -> None:
    """Create the empty arrays, unless this very conversion has begun to fill them.

    Raises:
        OutputError: The store can't be written, isn't slidesam's, or holds labels of another slide or plane.
    """
    arrays_mark, plan = run.image_folder.arrays_mark, run.image_plan
    converting = plan.mode == "convert"
    is_begun = StageMark.read(arrays_mark) is not None and (is_filling(run) or not converting)
    if is_begun and all(_array_folder(run, level).is_dir() for level in range(len(plan.levels))):
        return
    # The store first: until its arrays are recorded as this conversion's, no mark of an earlier one counts.
    root = prepare_store(run) if converting else None
    folder = run.image_folder.path
    for old_folder in run.paths.image.stage_folders("convert") if converting else [folder] if folder.exists() else []:
        remove_stage(old_folder)
    if root is None:
        root = zarr.create_group(run.image_folder.pixels, overwrite=True)
    for number, level in enumerate(plan.levels):
        halvings = number if number < plan.in_memory else 0
        create_plane_array(
            root,
            str(number),
            (1, len(plan.channels), 1, *level.shape),
            np.dtype(run.slide.dtype),
            (plan.shard[0] >> halvings, plan.shard[1] >> halvings),
            run.settings.image,
        )
    write_json(run.image_folder.causes, run.causes["image"])
    StageMark(reason=plan.reason).write(arrays_mark)
    if converting:
        record_filling(run, root)


def missing_tiles(run: Run, level: int, tile_ids: Sequence[int] | None = None) -> list[int]:
    """List the tiles of a level, or among those given, that have no done-mark or whose first shard is gone."""
    marks, folder, grid = Marks(run.image_folder), _array_folder(run, level), run.image_plan.grid(level)
    if tile_ids is None:
        finished_tiles, tile_ids = marks.names(), range(len(grid))
    else:
        finished_tiles = {name for name in (f"{level}-{tile}" for tile in tile_ids) if marks.has(name)}
    return [
        tile
        for tile in tile_ids
        if f"{level}-{tile}" not in finished_tiles or not _has_shard(run, folder, grid[tile].inner)
    ]


def _has_shard(run: Run, folder: Path, region: Region) -> bool:
    """Whether the first shard that a done-mark vouches for still exists."""
    if run.settings.image.ome_zarr == "0.4":
        return True
    shard = run.image_plan.shard
    return (folder / "c" / "0" / "0" / "0" / str(region.y0 // shard[0]) / str(region.x0 // shard[1])).exists()


def write_tile(run: Run, reader: SlideReader, level: int, tile_id: int) -> None:
    """Write one tile of level 0 and of the levels that it fills, or one shard of a level above, then its done-mark.

    Raises:
        SlideError: The pixels can't be decoded.
        OSError: They can't be written.
    """
    plan = run.image_plan
    region = plan.grid(level)[tile_id].inner
    if level == 0:
        pixels = _read(reader, region, plan.channels)
        for number in range(plan.in_memory):
            if number:
                pixels = halve(pixels)
            _write(run, number, shard_region(region, number), pixels)
    else:
        source_level = plan.levels[level].source_level
        if source_level is None:
            pixels = halve_region(_open_level(run, level - 1), region)
        else:
            pixels = reader.read_planes(region, source_level, plan.channels)
        _write(run, level, region, pixels)
    Marks(run.image_folder).put(Mark(block_id=f"{level}-{tile_id}"))


def _read(reader: SlideReader, region: Region, channels: tuple[int, ...]) -> NDArray[Any]:
    """Read (c, y, x) pixels of level 0, C-contiguous: a row of tiles at a time, so that channels are separated in the cache."""
    tile = reader.slide.levels[0].chunks[3]
    rows = tile * -(-_BAND_ROWS // tile)
    pixels = np.empty((len(channels), *region.shape), reader.slide.dtype)
    for y in range(region.y0, region.y1, rows):
        band = Region(y, region.x0, min(y + rows, region.y1), region.x1)
        pixels[(slice(None), *band.relative_to(region).slices)] = reader.read_planes(band, 0, channels)
    return pixels


def complete_image(run: Run) -> None:
    """Make the arrays an image, as the last step; or vouch for rechunked pixels."""
    if run.image_plan.mode == "convert":
        levels = [place_averages((2.0**level, 2.0**level)) for level in range(len(run.image_plan.levels))]
        show_image(run, zarr.open_group(run.store, mode="r+"), levels)
    else:
        StageMark(reason=run.image_plan.reason).write(run.image_folder.pixels_mark)


def _array_folder(run: Run, level: int) -> Path:
    root = run.store if run.image_plan.mode == "convert" else run.image_folder.pixels
    return root / str(level)


def _write(run: Run, level: int, region: Region, pixels: NDArray[Any]) -> None:
    """Write (c, y, x) pixels as whole shards; also those that are all 0, since a shard without a file counts as lost."""
    array = _open_level(run, level)
    if _has_blank_shard(array, pixels):
        # zarrs never writes such a shard, zarr itself does with this setting.
        array = zarr.open_array(_array_folder(run, level), mode="r+").with_config({"write_empty_chunks": True})
    write_shards(array, region, pixels)


def _has_blank_shard(array: zarr.Array[Any], pixels: NDArray[Any]) -> bool:
    """Whether (c, y, x) pixels that begin at a shard's corner contain a whole shard of zeros."""
    height, width = (array.shards or array.chunks)[3:]
    return any(
        not pixels[:, y : y + height, x : x + width].any()
        for y in range(0, pixels.shape[1], height)
        for x in range(0, pixels.shape[2], width)
    )


def _open_level(run: Run, level: int) -> zarr.Array[Any]:
    """Open a level's array."""
    return open_level(_array_folder(run, level), run.settings.image.ome_zarr)
