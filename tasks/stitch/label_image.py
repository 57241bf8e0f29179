"""The label image as a whole: created empty before blocks are painted, and the levels that no group of blocks fills."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.pixels.plan import group_levels
from slidesam.tasks.pixels.pyramid import halve_labels_region, shard_regions
from slidesam.tasks.run.files import remove_synced
from slidesam.tasks.run.marks import remove_stage
from slidesam.tasks.run.records import FileList, StageMark
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.votes import has_classes
from slidesam.tasks.stitch.batches import batch_name, block_batches, painted_files
from slidesam.tasks.store.arrays import FORMATS, open_levels, read_region, shard_paths, write_shards
from slidesam.tasks.store.file_list import Files, describe, has_all, read_metadata, vouch_for
from slidesam.tasks.store.groups import read_group, write_group
from slidesam.tasks.store.ome_zarr import create_label, write_label_arrays


def prepare_label_image(run: Run, objects: int) -> None:
    """Create the empty label pyramid, unless this very one is being painted already.

    Args:
        run: The run.
        objects: Number of the slide's objects, which the dtype depends on.
    """
    arrays_mark = run.paint_folder.arrays_mark
    if StageMark.read(arrays_mark) is not None and run.paths.label_image.is_dir():
        # What is painted stays, also where metadata is damaged.
        folder, dtype = run.paths.label_image, _label_dtype(objects)
        if read_group(folder) is None:
            write_group(folder, FORMATS[run.settings.image.ome_zarr], {})
        write_label_arrays(folder, run.grid.shape, run.group_shape, dtype, run.settings.image)
        return
    paths = run.paths
    remove_synced(paths.provenance, paths.file_list, paths.overlay, paths.classes, *paths.exports)
    for old_folder in [paths.spatialdata, *paths.stage_folders("objects", "paint")]:
        remove_stage(old_folder)
    create_label_image(run, objects)
    StageMark(objects=objects).write(arrays_mark)


def create_label_image(run: Run, objects: int) -> None:
    """Create the empty label pyramid, of a dtype that holds so many ids."""
    root = zarr.open_group(run.store, mode="r+")
    create_label(root, run.label, run.grid.shape, run.group_shape, _label_dtype(objects), run.settings.image)


def _label_dtype(objects: int) -> np.dtype[Any]:
    return np.dtype(np.uint32 if objects < 2**32 else np.uint64)


def finish_upper_levels(run: Run) -> None:
    """Fill the levels that groups don't fill, unless that is done: a label image that is listed must not change any more."""
    whole_mark = run.paint_folder.whole_mark
    mark = StageMark.read(whole_mark)
    if mark is not None and has_all(mark.files, run.output):
        return
    written: list[Path] = []
    levels = open_levels(run.paths.label_image, run.settings.image.ome_zarr)
    for level in range(group_levels(run.group_shape, len(levels)), len(levels)):
        finer, coarser = levels[level - 1], levels[level]
        for region in shard_regions(coarser):
            write_shards(coarser, region, halve_labels_region(partial(read_region, finer), finer, region))
            written += shard_paths(coarser, region)
    StageMark(files=vouch_for(written, run.output, is_sparse=True)).write(whole_mark)


def list_label_files(run: Run) -> tuple[int, int]:
    """Write the list of a finished label image's files, and of its picture and table of classes.

    Returns:
        Size and crc32c of the list.

    Raises:
        DamagedError: What vouches for some files is damaged or gone, so that they are written again.
    """
    folder = run.paths.label_image
    levels = sorted(level for level in folder.iterdir() if level.name.isdigit())
    paint_folder, whole_mark = run.paint_folder, StageMark.read(run.paint_folder.whole_mark)
    written = {batch_name(batch): painted_files(run, batch) for batch in block_batches(run)}
    written["levels"] = None if whole_mark is None else whole_mark.files
    units: dict[str, Files] = {}
    for name, files in written.items():
        if files is None:
            mark = paint_folder.whole_mark if name == "levels" else paint_folder.measures(name)
            raise DamagedError(f"{mark} is damaged or gone", "run the same command again")
        units[name] = files
    units["picture"] = vouch_for([run.paths.overlay], run.output)
    if has_classes(run.settings.segmenter):
        units["classes"] = vouch_for([run.paths.classes], run.output)
    metadata = read_metadata([folder, *levels], run.output)
    FileList(fingerprint=run.fingerprints["export"], metadata=metadata, units=units).write(run.paths.file_list)
    return describe(run.paths.file_list)
