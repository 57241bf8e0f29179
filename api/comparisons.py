"""Compare a finished result with a truth, or with another result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.open_results import Result, open_result
from slidesam.tasks.compare.comparison import Comparison, check_same_slide, choose_prefix, compare_run
from slidesam.tasks.compare.label_sources import is_own_store, open_run_labels, open_truth, show_array


def compare(
    result: Result | str | os.PathLike[str],
    truth: Result | str | os.PathLike[str] | NDArray[np.integer[Any]],
    *,
    label: str | None = None,
    truth_label: str | None = None,
    regions: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compare a result with a truth, as `slidesam compare` does: F1, panoptic quality, merged and split objects.

    Args:
        result: A result, or what `open_result` opens.
        truth: Another result of the slide, or its store; or labels of the same pixels: (y, x) in memory, a TIFF, an OME-Zarr
            label image, a .npy; or outlines as GeoJSON, in pixels of the slide's full resolution.
        label: Label image of the result, where its store has several.
        truth_label: The same of the truth.
        regions: Path of GeoJSON with polygons to count objects in, or a rectangle as in `blocks.region`.
        output: Folder, or beginning of the paths, for numbers (.json), pairs of objects (.csv) and a picture (.png).

    Raises:
        OutputError: There is no such finished result, it is damaged, or a file can't be written.
        SettingsError: The truth is of another slide or size, or can't be used.
    """
    opened = result if isinstance(result, Result) else open_result(result, label)
    run = opened.as_run()
    if isinstance(truth, np.ndarray):
        source = show_array(truth)
    elif isinstance(truth, Result) or is_own_store(Path(truth)):
        other = (truth if isinstance(truth, Result) else open_result(truth, truth_label)).as_run()
        check_same_slide(run, other)
        source = open_run_labels(other)[0]
    else:
        source = open_truth(Path(truth), run.slide.shape)
    prefix = None if output is None else choose_prefix(Path(output), run)
    return compare_run(run, source, None if regions is None else os.fspath(regions), prefix)
