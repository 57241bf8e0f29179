"""A slide through all steps in this process, without Prefect's engine or a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from slidesam.tasks import steps
from slidesam.tasks.plan import pieced_levels, plan_run
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch.batches import block_batches
from slidesam.tasks.store import convert


def write_image_serially(run: Run) -> None:
    """The image stage: converted, rechunked, or an overview."""
    if convert.is_ready(run):
        return
    steps.ready_image.fn(run)
    if run.image_plan.mode != "in place":
        for level in pieced_levels(run):
            steps.write_pieces.fn(run, level, range(len(run.image_plan.grid(level))))
        steps.finish_image.fn(run, [])


def stitch_serially(run: Run, order: int = 1) -> int:
    """Matching, numbering, painting and export of a run whose blocks are segmented, in order or against it; how many objects."""
    for batch in block_batches(run)[::order]:
        steps.match_blocks.fn(run, batch)
    objects = steps.resolve_objects.fn(run)["objects"]
    for batch in block_batches(run)[::order]:
        steps.paint_blocks.fn(run, batch)
    steps.export_slide.fn(run, objects, {})
    return objects


def segment_serially(slide: Path, output: Path, overrides: dict) -> np.ndarray:
    """The slide's (y, x) labels."""
    run = plan_run(slide, output, make_settings(overrides=overrides))
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    steps.segment_blocks.fn(run, list_blocks(run))
    stitch_serially(run)
    return np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0])
