"""A slide through all steps in this process, without Prefect's engine or a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from slidesam.tasks import steps
from slidesam.tasks.config import make_settings
from slidesam.tasks.plan import plan_run


def segment_serially(slide: Path, output: Path, overrides: dict) -> np.ndarray:
    """The slide's (y, x) labels."""
    run = plan_run(slide, output, make_settings(overrides=overrides))
    blocks = range(len(run.grid))
    steps.prepare_slide.fn(run)
    for block_id in blocks:
        steps.segment_block.fn(run, block_id)
    steps.match_blocks.fn(run, blocks)
    facts = steps.resolve_objects.fn(run)
    steps.paint_blocks.fn(run, blocks)
    steps.export_slide.fn(run, facts["objects"], {})
    return np.asarray(zarr.open_array(run.store / "labels" / run.label / "0", mode="r")[0, 0, 0])
