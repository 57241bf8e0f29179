"""The objects of a finished run, one row each, from what painting measured or from the labels themselves.

Painting notes, per block, what can be added up over the parts of an object (`paint-<fingerprint>/measures`). Where these files
are damaged or were cleaned up the labels are measured again, block by block: slower, the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.lazy_arrays import LazyArray
from slidesam.tasks.errors import OutputError
from slidesam.tasks.labels.parts import add_up_parts, measure_parts
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.stage_folders import PaintFolder
from slidesam.tasks.stitch.batches import batch_name, block_batches

COLUMNS = np.dtype(
    [
        ("id", np.int64),
        ("area", np.int64),
        ("y", np.float64),
        ("x", np.float64),
        ("y0", np.int64),
        ("x0", np.int64),
        ("y1", np.int64),
        ("x1", np.int64),
    ]
)


def read_objects(run: Run, labels: LazyArray, paint_folder: PaintFolder) -> NDArray[Any]:
    """Read the table of a slide's objects.

    Args:
        run: The run.
        labels: (y, x) ids of the slide.
        paint_folder: Where painting left its measures; it may be gone.

    Returns:
        (n,) array of type `COLUMNS`, by id: area in pixels, centroid (y, x), and box [y0, y1) × [x0, x1).
    """
    try:
        parts = [load_arrays(paint_folder.measures(batch_name(batch)))["measures"] for batch in block_batches(run)]
    except OutputError:
        parts = [measure_parts(labels[block.inner.slices], block.inner) for block in run.grid]
    found = add_up_parts(np.concatenate(parts))
    table = np.zeros(found.ids.size, COLUMNS)
    table["id"], table["area"] = found.ids, found.area
    table["y"], table["x"] = (found.sums / found.area[:, None]).T
    table["y0"], table["x0"], table["y1"], table["x1"] = found.boxes.T
    return table
