"""Find what all blocks of a slide share, once: the segmenter's parameters, the background, the blocks that hold tissue."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.pixels.background import background_of
from slidesam.tasks.pixels.mask_image import read_mask
from slidesam.tasks.pixels.pyramid import overview_step
from slidesam.tasks.pixels.sample import sample_slide
from slidesam.tasks.pixels.tissue import TissueMask, blocks_with_tissue, find_tissue
from slidesam.tasks.run.array_files import load_arrays, write_arrays
from slidesam.tasks.run.files import write_json
from slidesam.tasks.run.marks import is_segmented, read_params
from slidesam.tasks.run.records import Params
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.devices import check_given, check_torch
from slidesam.tasks.segmenters import jsonable_params, load_segmenter
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.slides.no_data import describe_no_data, drop_no_data
from slidesam.tasks.store.image import read_slide_overview
from slidesam.tasks.store.readers import open_pixels


def prepare_run(run: Run) -> Params:
    """Find what all blocks share, and which of them hold tissue, unless an earlier task has done so.

    Raises:
        SegmenterError: The segmenter can't be made.
        DeviceError: It would compute on another device than the given one.
        OutputError: Results can't be written.
    """
    start_time = time.perf_counter()
    if is_segmented(run):
        # A model that needs a GPU isn't loaded if there is nothing left to segment.
        return read_params(run)
    # First, so that nothing is written for a segmenter that can't be made.
    segmenter = load_run_segmenter(run)
    path = run.segment_folder.params
    shared = Params.read(path)
    if shared is None:
        overview = read_slide_overview(run)
        with closing(open_pixels(run)) as reader:
            sample = sample_slide(run.segmented_grid.shape, overview, reader)
        fill = background_of(overview, is_bright=segmenter.has_bright_background(run.segmented_slide))
        blocks, known = _find_blocks(run, overview), drop_no_data(sample, fill)
        shared = Params(
            params=jsonable_params(
                segmenter.prepare(known[..., 0] if known.shape[2] == 1 else known, run.segmented_slide)
            ),
            fill=fill.tolist(),
            blocks=blocks,
            has_tissue=bool(_find_tissue(run, overview).any() if blocks is None else blocks),
            warnings=describe_no_data(sample),
            seconds=time.perf_counter() - start_time,
        )
        write_json(run.segment_folder.causes, run.causes["segment"])
        shared.write(path)
    return shared


def _find_blocks(run: Run, overview: NDArray[Any]) -> tuple[int, ...] | None:
    """Find the ids of the blocks that hold tissue, None for all; save the mask for the picture."""
    tissue = run.settings.blocks.tissue
    if tissue == "off":
        return None
    if tissue == "auto":
        mask = _find_tissue(run, overview)
        step = overview_step(run.slide)
        arrays = {"step": np.asarray(step)}
    else:
        # A mask image is stretched over the slide.
        mask, step, arrays = read_mask(Path(tissue), run.slide.shape), None, {}
    arrays |= {"bits": np.packbits(mask), "shape": np.asarray(mask.shape)}
    write_arrays(run.segment_folder.tissue, arrays)
    return tuple(blocks_with_tissue(mask, run.grid, step))


def _find_tissue(run: Run, overview: NDArray[Any]) -> NDArray[np.bool_]:
    return find_tissue(overview, is_rgb=run.slide.is_rgb, has_gaps=run.slide.has_gaps)


def read_tissue(run: Run) -> TissueMask | None:
    """Read the mask of tissue, or find it again if its file is gone; None if all blocks are segmented.

    Raises:
        DamagedError: The file is damaged, and removed.
    """
    if run.settings.blocks.tissue == "off":
        return None
    if not run.segment_folder.tissue.exists():
        _find_blocks(run, read_slide_overview(run))
    arrays = load_arrays(run.segment_folder.tissue)
    height, width = arrays["shape"]
    pixels = np.unpackbits(arrays["bits"], count=height * width).reshape(height, width).astype(bool)
    stretched = np.array(run.slide.shape) / (height, width)
    step_y, step_x = arrays.get("step", stretched).tolist()
    return TissueMask(pixels, (step_y, step_x))


def load_run_segmenter(run: Run) -> Segmenter:
    """Load the run's segmenter, on the device that this worker was given.

    Raises:
        DeviceError: It would compute on another device.
    """
    check_given()
    settings_json = run.settings.segmenter.model_dump_json()
    segmenter = load_segmenter(settings_json, run.slide.is_rgb, run.segmenter_identity, run.permitted)
    check_torch()
    return segmenter
