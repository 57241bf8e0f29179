"""The label image as a whole: emptied before blocks are painted, and the levels that no block fills."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from slidesam.tasks.pixels.plan import in_block_levels
from slidesam.tasks.pixels.pyramid import halve_labels, region_below, shard_regions
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.groups import ready_label
from slidesam.tasks.store import ome_zarr as omezarr


def ready_label_image(run: Run, objects: int) -> None:
    """Makes the empty label pyramid, unless this very one is being painted already."""
    started = run.paint_folder / "started.json"
    if read_json(started) is not None and (run.store / "labels" / run.label / "0").is_dir():
        return
    run.provenance.unlink(missing_ok=True)
    run.overlay.unlink(missing_ok=True)
    for old in run.work.glob("paint-*"):
        _forget(old)
    ready_label(run, objects)
    write_json(started, {"objects": objects})


def _forget(folder: Path) -> None:
    """Removes a folder of marks, the one that says `started` first."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def finish_upper_levels(run: Run) -> None:
    """Fills the levels that blocks don't fill."""
    levels = omezarr.open_levels(run.store / "labels" / run.label, run.settings.image.ome_zarr)
    for level in range(in_block_levels(run.grid.block_shape, len(levels)), len(levels)):
        finer, coarser = levels[level - 1], levels[level]
        for region in shard_regions(coarser):
            below = region_below(region, finer.shape[3:])
            labels = np.asarray(finer[(0, 0, 0, *below.slices)])
            omezarr.write_shards(coarser, region, halve_labels(labels))
