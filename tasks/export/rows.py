"""What tasks described of the objects, read again: in pieces by id, or a task's file at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.columns import Columns
from slidesam.tasks.export.index import COLUMN, ROWS, OutlineForm, object_folder, outline_part, tile_batches
from slidesam.tasks.run.array_files import ArrayFile
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.batches import batch_name

# Rows that are in memory at once.
_ROWS, _ROWS_WITH_POLYGONS = 2**16, 2**14


def read_rows(run: Run, names: Sequence[str], *, with_polygons: bool = False) -> Iterator[Columns]:
    """Read columns of all objects by ascending id, in pieces of at most 65 536 rows; none where there are no objects.

    Args:
        run: A run whose objects are described.
        names: Columns, as `describe_columns` names them; `label` among them.
        with_polygons: Whether to add `geometry` (n,) bytes of WKB, and `bounds` (n, 4); in pieces of at most 16 384 rows then.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    parts = list(read_described(run))
    polygons = list(read_outlines(run, "polygons")) if with_polygons else [None] * len(parts)
    filled = [pair for pair in zip(parts, polygons, strict=True) if f"{COLUMN}label" in pair[0].names]
    ids = [part.read(f"{COLUMN}label") for part, _ in filled]
    last = max((int(each[-1]) for each in ids), default=0)
    rows = _ROWS_WITH_POLYGONS if with_polygons else _ROWS
    for first in range(1, last + 1, rows):
        slices = [np.searchsorted(each, (first, first + rows)).tolist() for each in ids]
        found = [(*pair, *bounds) for pair, bounds in zip(filled, slices, strict=True) if bounds[0] < bounds[1]]
        if found:
            yield _merge(found, names)


def count_rows(run: Run) -> int:
    """Count the objects that are described."""
    name = f"{COLUMN}label"
    return sum(part.shape(name)[0] for part in read_described(run) if name in part.names)


def read_types(run: Run) -> Mapping[str, np.dtype[Any]]:
    """Return the type of each column; 64-bit floats where there are no objects."""
    for part in read_described(run):
        if part.names:
            return {name.removeprefix(COLUMN): part.read(name, 0, 0).dtype for name in part.names}
    return defaultdict(lambda: np.dtype(np.float64))


def _merge(found: list[tuple[ArrayFile, ArrayFile | None, int, int]], names: Sequence[str]) -> Columns:
    """Read some rows of each task, and sort them by id."""
    columns = {
        name: np.concatenate([part.read(f"{COLUMN}{name}", *bounds) for part, _, *bounds in found]) for name in names
    }
    polygons = [(file, start, stop) for _, file, start, stop in found if file is not None]
    if polygons:
        columns["geometry"] = np.concatenate([_read_texts(*each) for each in polygons])
        columns["bounds"] = np.concatenate([file.read("bounds", *bounds) for file, *bounds in polygons])
    order = np.argsort(columns["label"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _read_texts(file: ArrayFile, start: int, stop: int) -> NDArray[Any]:
    starts = file.read("starts", start, stop + 1).tolist()
    text = file.read("bytes", starts[0], starts[-1]).tobytes()
    texts = np.empty(stop - start, object)
    texts[:] = [text[first - starts[0] : last - starts[0]] for first, last in pairwise(starts)]
    return texts


def read_described(run: Run) -> Iterator[ArrayFile]:
    """Open the files of all tasks' rows, by tiles.

    Raises:
        DamagedError: One is damaged or gone.
    """
    return _open_parts(run, ROWS)


def read_outlines(run: Run, form: OutlineForm) -> Iterator[ArrayFile]:
    """Open the files of all tasks' outlines, by tiles.

    Raises:
        DamagedError: One is damaged or gone.
    """
    return _open_parts(run, outline_part(run, form))


def _open_parts(run: Run, kind: str) -> Iterator[ArrayFile]:
    folder = object_folder(run)
    return (ArrayFile(folder.part(kind, batch_name(batch))) for batch in tile_batches(run))
