"""What tasks described of the objects, read again: in pieces by id, or a task's file at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.columns import Columns
from slidesam.tasks.export.index import object_folder, tile_batches
from slidesam.tasks.run.array_files import ArrayFile
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.batches import batch_name

# Rows that are in memory at once.
_ROWS = 2**16


def read_rows(run: Run, names: Sequence[str]) -> Iterator[Columns]:
    """Read columns of all objects by ascending id, in pieces of at most 65 536 rows; none where there are no objects.

    Args:
        run: A run whose objects are described.
        names: Columns, as `describe_columns` names them; `label` among them.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    parts = [part for part in read_described(run) if "column label" in part.names]
    ids = [part.read("column label") for part in parts]
    last = max((int(each[-1]) for each in ids), default=0)
    for first in range(1, last + 1, _ROWS):
        yield _merge(parts, ids, first, first + _ROWS, names)


def _merge(parts: list[ArrayFile], ids: list[NDArray[np.int64]], first: int, end: int, names: Sequence[str]) -> Columns:
    """Read the rows of the ids from `first` to below `end`."""
    slices = [np.searchsorted(each, (first, end)).tolist() for each in ids]
    found = [(part, *bounds) for part, bounds in zip(parts, slices, strict=True) if bounds[0] < bounds[1]]
    columns = {
        name: np.concatenate([part.read(f"column {name}", *bounds) for part, *bounds in found]) for name in names
    }
    order = np.argsort(columns["label"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def read_described(run: Run) -> Iterator[ArrayFile]:
    """Open the files of all tasks, by tiles.

    Raises:
        DamagedError: One is damaged or gone.
    """
    folder = object_folder(run)
    return (ArrayFile(folder.part("described", batch_name(batch))) for batch in tile_batches(run))
