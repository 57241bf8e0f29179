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
from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import measure_labels
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.layout import PaintFolder
from slidesam.tasks.run.run import Run
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
        parts = [_measure(labels, block.inner) for block in run.grid]
    return _add_up(np.concatenate(parts))


def _measure(labels: LazyArray, region: Region) -> NDArray[np.int64]:
    """Measure the objects in a region: (n, 8) id, area, sums of y and x, and box, in the slide's coordinates."""
    ids, parts = measure_labels(labels[region.slices])
    origin = np.array(region[:2], np.int64)
    parts[:, 1:3] += parts[:, :1] * origin
    parts[:, 3:] += np.tile(origin, 2)
    return np.column_stack([ids, parts])


def _add_up(rows: NDArray[np.int64]) -> NDArray[Any]:
    """Make one row per object from the rows of its parts: id, area, sums of y and x, box."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ids, first = np.unique(rows[:, 0], return_index=True)
    table = np.zeros(ids.size, COLUMNS)
    if ids.size:
        area, sum_y, sum_x = (np.add.reduceat(rows[:, column], first) for column in (1, 2, 3))
        table["id"], table["area"], table["y"], table["x"] = ids, area, sum_y / area, sum_x / area
        table["y0"], table["x0"] = (np.minimum.reduceat(rows[:, column], first) for column in (4, 5))
        table["y1"], table["x1"] = (np.maximum.reduceat(rows[:, column], first) for column in (6, 7))
    return table
