"""The label image as a whole: emptied before blocks are painted, and the levels that no block fills."""

from __future__ import annotations

import numpy as np

from slidesam.tasks.pixels.plan import in_block_levels
from slidesam.tasks.pixels.pyramid import halve_labels, region_below, shard_regions
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.marks import remove_stage
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.groups import ready_label
from slidesam.tasks.store import ome_zarr as omezarr


def ready_label_image(run: Run, objects: int) -> None:
    """Makes the empty label pyramid, unless this very one is being painted already."""
    started = run.paint_folder.started
    if read_json(started) is not None and (run.paths.label_image / "0").is_dir():
        return
    run.paths.provenance.unlink(missing_ok=True)
    run.paths.overlay.unlink(missing_ok=True)
    for old in run.paths.stage_folders("paint"):
        remove_stage(old)
    ready_label(run, objects)
    write_json(started, {"objects": objects})


def finish_upper_levels(run: Run) -> None:
    """Fills the levels that blocks don't fill."""
    levels = omezarr.open_levels(run.paths.label_image, run.settings.image.ome_zarr)
    for level in range(in_block_levels(run.grid.block_shape, len(levels)), len(levels)):
        finer, coarser = levels[level - 1], levels[level]
        for region in shard_regions(coarser):
            below = region_below(region, finer.shape[3:])
            labels = np.asarray(finer[(0, 0, 0, *below.slices)])
            omezarr.write_shards(coarser, region, halve_labels(labels))
