"""A slide through all steps in this process, without Prefect's engine or a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from slidesam.tasks import convert, steps
from slidesam.tasks.config import make_settings
from slidesam.tasks.plan import pieced_levels, plan_run
from slidesam.tasks.work import Run, kept_blocks


def write_image_serially(run: Run) -> None:
    """The image stage: converted, rechunked, or an overview."""
    if convert.is_ready(run):
        return
    steps.ready_image.fn(run)
    if run.image_plan.mode != "in place":
        for level in pieced_levels(run):
            steps.write_pieces.fn(run, level, range(len(run.image_plan.grid(level))))
        steps.finish_image.fn(run, [])


def segment_serially(slide: Path, output: Path, overrides: dict) -> np.ndarray:
    """The slide's (y, x) labels."""
    run = plan_run(slide, output, make_settings(overrides=overrides))
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    blocks = kept_blocks(run)
    steps.segment_blocks.fn(run, blocks)
    steps.match_blocks.fn(run, blocks)
    facts = steps.resolve_objects.fn(run)
    steps.paint_blocks.fn(run, blocks)
    steps.export_slide.fn(run, facts["objects"], {})
    return np.asarray(zarr.open_array(run.store / "labels" / run.label / "0", mode="r")[0, 0, 0])
