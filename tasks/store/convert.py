"""Rewrite a slide's pixels tile by tile: as an OME-Zarr pyramid, or rechunked for the blocks to read.

1. `ready_arrays`   empty arrays
2. `write_tile`    one tile of level 0 with the levels that it fills, or one shard of a level above
3. `complete_image`   what makes the arrays an image

A tile is read once and written as whole shards by one task; `image_plan` says which.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.plan import shard_region
from slidesam.tasks.pixels.pyramid import halve, halve_region
from slidesam.tasks.run.files import write_json
from slidesam.tasks.run.marks import Marks, remove_stage
from slidesam.tasks.run.records import FileList, StageMark, TileMark
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store.arrays import (
    ArrayPlan,
    open_level,
    read_whole,
    shard_paths,
    write_array_metadata,
    write_shards,
)
from slidesam.tasks.store.file_list import has_all, vouch_for
from slidesam.tasks.store.image import (
    has_whole_image,
    is_filling,
    is_shown,
    list_image_files,
    prepare_store,
    record_filling,
    show_image,
)
from slidesam.tasks.store.multiscales import place_averages

_BAND_ROWS = 256


def is_ready(run: Run) -> bool:
    """Whether the store has its image, and the rechunked pixels exist if the plan needs them; all files with their sizes."""
    if not is_shown(run) or not has_whole_image(run):
        return False
    if run.image_plan.mode == "in place":
        return True
    listed = _read_list(run)
    has_tiles = listed.units.keys() >= set(_tile_names(run))
    return has_tiles and (run.image_plan.mode == "convert" or has_all(listed.files, run.output))


def tiled_levels(run: Run) -> list[int]:
    """List the levels whose tiles are written by tasks of their own, not with those of level 0."""
    plan = run.image_plan
    return [0, *range(plan.in_memory, len(plan.levels))]


def _tile_names(run: Run) -> list[str]:
    """Name all tiles of an image, as their marks and its list do."""
    levels = {level: len(run.image_plan.grid(level)) for level in tiled_levels(run)}
    return [f"{level}-{tile}" for level, n_tiles in levels.items() for tile in range(n_tiles)]


def ready_arrays(run: Run) -> None:
    """Create the empty arrays, unless this very conversion has begun to fill them.

    Raises:
        OutputError: The store can't be written, isn't slidesam's, or holds labels of another slide or plane.
    """
    arrays_mark, plan = run.image_folder.arrays_mark, run.image_plan
    converting = plan.mode == "convert"
    plans = [_plan_array(run, level) for level in range(len(plan.levels))]
    root_folder = _array_folder(run, 0).parent
    is_begun = StageMark.read(arrays_mark) is not None and (is_filling(run) or not converting)
    if is_begun or (converting and is_shown(run)):
        # What the arrays hold stays, also where their metadata is damaged.
        write_array_metadata(root_folder, plans, _array_settings(run))
        return
    # The store first: until its arrays are recorded as this conversion's, no mark of an earlier one counts.
    root = prepare_store(run) if converting else None
    folder = run.image_folder.path
    for old_folder in run.paths.image.stage_folders("convert") if converting else [folder] if folder.exists() else []:
        remove_stage(old_folder)
    if root is None:
        zarr.create_group(root_folder, overwrite=True)
    write_array_metadata(root_folder, plans, _array_settings(run))
    write_json(run.image_folder.causes, run.causes["image"])
    StageMark(reason=plan.reason).write(arrays_mark)
    if root is not None:
        record_filling(run, root)


def _array_settings(run: Run) -> ImageSettings:
    """Return how the arrays are written; rechunked pixels are always sharded, since nobody but slidesam reads them."""
    image = run.settings.image
    return image if run.image_plan.mode == "convert" else image.model_copy(update={"ome_zarr": "0.5"})


def _plan_array(run: Run, level: int) -> ArrayPlan:
    plan = run.image_plan
    halvings = level if level < plan.in_memory else 0
    shape = (1, len(plan.channels), 1, *plan.levels[level].shape)
    return ArrayPlan(
        str(level), shape, np.dtype(run.slide.dtype), (plan.shard[0] >> halvings, plan.shard[1] >> halvings)
    )


def missing_tiles(run: Run, level: int, tile_ids: Sequence[int] | None = None) -> list[int]:
    """List the tiles of a level, or among those given, that nothing vouches for, or whose files are gone."""
    tile_ids = range(len(run.image_plan.grid(level))) if tile_ids is None else tile_ids
    marks = Marks(run.image_folder)
    # Of a finished image its list vouches; marks are of what is being made.
    listed, marked = _read_list(run).units, marks.names()

    def is_done(name: str) -> bool:
        mark = TileMark.read(run.image_folder.mark(name)) if name in marked else None
        files = listed.get(name) if mark is None else mark.files
        return files is not None and has_all(files, run.output)

    return [tile for tile in tile_ids if not is_done(f"{level}-{tile}")]


def _read_list(run: Run) -> FileList:
    """Read the list of this conversion's or rechunking's files; an empty one if it has never been finished."""
    listed = FileList.read(_list_path(run))
    is_ours = listed is not None and listed.fingerprint == run.fingerprints["image"]
    return listed if is_ours and listed is not None else FileList(fingerprint=run.fingerprints["image"])


def _list_path(run: Run) -> Path:
    return run.paths.image.file_list if run.image_plan.mode == "convert" else run.image_folder.pixels_mark


def write_tile(run: Run, reader: SlideReader, level: int, tile_id: int) -> None:
    """Write one tile of level 0 and of the levels that it fills, or one shard of a level above, then its done-mark.

    Raises:
        SlideError: The pixels can't be decoded.
        OSError: They can't be written.
    """
    plan = run.image_plan
    region = plan.grid(level)[tile_id].inner
    written: list[Path] = []
    if level == 0:
        pixels = _read(reader, region, plan.channels)
        for number in range(plan.in_memory):
            if number:
                pixels = halve(pixels)
            written += _write(run, number, shard_region(region, number), pixels)
    else:
        source_level = plan.levels[level].source_level
        if source_level is None:
            finer = _open_level(run, level - 1)
            pixels = halve_region(partial(read_whole, finer, channel=slice(None)), finer, region)
        else:
            pixels = reader.read_planes(region, source_level, plan.channels)
        written += _write(run, level, region, pixels)
    Marks(run.image_folder).put(TileMark(block_id=f"{level}-{tile_id}", files=vouch_for(written, run.output)))


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
    """Make the arrays an image, as the last step; or vouch for rechunked pixels. From then on a list vouches for all tiles.

    Raises:
        DamagedError: The mark of a tile is damaged or gone, so that the tile is made again.
    """
    levels = range(len(run.image_plan.levels))
    units = _read_list(run).units | {
        str(mark.block_id): mark.files
        for name in Marks(run.image_folder).names()
        if (mark := TileMark.read(run.image_folder.mark(name))) is not None
    }
    for name in _tile_names(run):
        if name not in units:
            raise DamagedError(f"{run.image_folder.mark(name)} is damaged or gone", "run the same command again")
    if run.image_plan.mode == "convert":
        places = [place_averages((2.0**level, 2.0**level)) for level in levels]
        show_image(run, zarr.open_group(run.store, mode="r+"), places, units)
    else:
        list_image_files(run, run.image_folder.pixels_mark, run.image_folder.pixels, units)
    # A slide of 100 000 px has 625.
    shutil.rmtree(run.image_folder.marks, ignore_errors=True)


def _array_folder(run: Run, level: int) -> Path:
    root = run.store if run.image_plan.mode == "convert" else run.image_folder.pixels
    return root / str(level)


def _write(run: Run, level: int, region: Region, pixels: NDArray[Any]) -> list[Path]:
    """Write (c, y, x) pixels as whole shards; also those that are all 0, since a shard without a file counts as lost.

    Returns:
        The shards' files.
    """
    array = _open_level(run, level)
    if _has_blank_shard(array, pixels):
        # zarrs never writes such a shard, zarr itself does with this setting.
        array = zarr.open_array(_array_folder(run, level), mode="r+").with_config({"write_empty_chunks": True})
    write_shards(array, region, pixels)
    return shard_paths(array, region)


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
    return open_level(_array_folder(run, level), _array_settings(run).ome_zarr)
