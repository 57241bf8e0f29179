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
from slidesam.tasks.run.regions import keep_regions
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
        SettingsError: The file of the regions of interest changed since the run was planned.
    """
    start_time = time.perf_counter()
    keep_regions(run)
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
        measured = measure_sample(run, segmenter, overview, sample)
        blocks = _find_blocks(run, overview)
        update = {
            "blocks": blocks,
            "has_tissue": bool(_find_tissue(run, overview).any() if blocks is None else blocks),
            "seconds": time.perf_counter() - start_time,
        }
        shared = measured.model_copy(update=update)
        write_json(run.segment_folder.causes, run.causes["segment"])
        shared.write(path)
    return shared


def measure_sample(run: Run, segmenter: Segmenter, overview: NDArray[Any], sample: NDArray[Any]) -> Params:
    """Find the segmenter's parameters and the background of a slide; write nothing.

    Args:
        run: The run.
        segmenter: Its segmenter.
        overview: (y, x, c) coarse image of the slide's channels to segment.
        sample: What `sample_slide` read of them.

    Returns:
        What all blocks share, without the blocks that hold tissue.
    """
    fill = background_of(overview, is_bright=segmenter.has_bright_background(run.segmented_slide))
    known = drop_no_data(sample, fill)
    pixels = known[..., 0] if known.shape[2] == 1 else known
    return Params(
        params=jsonable_params(segmenter.prepare(pixels, run.segmented_slide)),
        fill=fill.tolist(),
        warnings=describe_no_data(sample),
    )


def find_blocks(run: Run, overview: NDArray[Any]) -> tuple[tuple[int, ...] | None, TissueMask | None]:
    """Find the ids of the blocks that hold tissue, and the mask; (None, None) if all are segmented.

    Args:
        run: The run.
        overview: (y, x, c) coarse image of the slide's channels to segment.
    """
    tissue = run.settings.blocks.tissue
    if tissue == "off":
        return None, None
    if tissue == "auto":
        mask = TissueMask(_find_tissue(run, overview), overview_step(run.slide))
        return tuple(blocks_with_tissue(mask.pixels, run.grid, mask.step)), mask
    # A mask image is stretched over the slide.
    pixels = read_mask(Path(tissue), run.slide.shape)
    step_y, step_x = (np.array(run.slide.shape) / pixels.shape).tolist()
    return tuple(blocks_with_tissue(pixels, run.grid)), TissueMask(pixels, (step_y, step_x))


def _find_blocks(run: Run, overview: NDArray[Any]) -> tuple[int, ...] | None:
    """Find the ids of the blocks that hold tissue, None for all; save the mask for the picture."""
    blocks, mask = find_blocks(run, overview)
    if mask is not None:
        # Without a step the mask is stretched over the slide when it is read.
        arrays = {"step": np.asarray(mask.step)} if run.settings.blocks.tissue == "auto" else {}
        arrays |= {"bits": np.packbits(mask.pixels), "shape": np.asarray(mask.pixels.shape)}
        write_arrays(run.segment_folder.tissue, arrays)
    return blocks


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
