"""The label image as a whole: created empty before blocks are painted, and the levels that no group of blocks fills."""

from __future__ import annotations

import numpy as np
import zarr

from slidesam.tasks.pixels.plan import group_levels
from slidesam.tasks.pixels.pyramid import halve_labels_region, shard_regions
from slidesam.tasks.run.marks import remove_stage
from slidesam.tasks.run.records import StageMark
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.ome_zarr import create_label, open_levels, write_shards


def prepare_label_image(run: Run, objects: int) -> None:
    """Create the empty label pyramid, unless this very one is being painted already.

    Args:
        run: The run.
        objects: Number of the slide's objects, which the dtype depends on.
    """
    arrays_mark = run.paint_folder.arrays_mark
    if StageMark.read(arrays_mark) is not None and (run.paths.label_image / "0").is_dir():
        return
    run.paths.provenance.unlink(missing_ok=True)
    run.paths.overlay.unlink(missing_ok=True)
    for old_folder in run.paths.stage_folders("paint"):
        remove_stage(old_folder)
    create_label_image(run, objects)
    StageMark(objects=objects).write(arrays_mark)


def create_label_image(run: Run, objects: int) -> None:
    """Create the empty label pyramid, of a dtype that holds so many ids."""
    dtype = np.dtype(np.uint32 if objects < 2**32 else np.uint64)
    root = zarr.open_group(run.store, mode="r+")
    create_label(root, run.label, run.grid.shape, run.group_shape, dtype, run.settings.image)


def finish_upper_levels(run: Run) -> None:
    """Fill the levels that groups don't fill, unless that is done: a label image that is listed must not change any more."""
    whole_mark = run.paint_folder.whole_mark
    if StageMark.read(whole_mark) is not None:
        return
    levels = open_levels(run.paths.label_image, run.settings.image.ome_zarr)
    for level in range(group_levels(run.group_shape, len(levels)), len(levels)):
        finer, coarser = levels[level - 1], levels[level]
        for region in shard_regions(coarser):
            write_shards(coarser, region, halve_labels_region(finer, region))
    StageMark().write(whole_mark)
