"""Look objects up in the table of a label image: one row, or the few columns that a map of all objects needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.pages.density import DensityMap

_PLACE = ("centroid-0", "centroid-1")
_CLASS = "class"


class ObjectRow(NamedTuple):
    """An object's row.

    Attributes:
        box: y0, x0, y1, x1 on level 0, half open.
        cells: Name, value (None where it is missing) and meaning of each column.
    """

    box: tuple[int, int, int, int]
    cells: list[tuple[str, Any, str]]


class ObjectSummary(NamedTuple):
    """All objects of a label image, by what a map of them needs.

    Attributes:
        ids: (n,) ids, ascending.
        class_numbers: (n,) uint16 place of each object's class in `class_names`; 0 without classes.
        class_names: Names of the classes, by the alphabet; empty without classes.
        densities: Counts in cells, of each class; of all objects where there are no classes.
        cell: Side of a cell in pixels of level 0.
        diameter: Median diameter in pixels, of circles of the objects' areas.
    """

    ids: NDArray[np.int64]
    class_numbers: NDArray[np.uint16]
    class_names: tuple[str, ...]
    densities: list[DensityMap]
    cell: int
    diameter: float


def find_row(table: Path, object_id: int) -> ObjectRow | None:
    """Find an object's row, reading only the group of rows that holds it; None if there is no such object.

    Args:
        table: `<name>.<label>.objects.parquet`, by ascending id.
        object_id: Number in the label image.

    Raises:
        OutputError: The table is damaged or gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            group = _find_group(file.metadata, object_id)
            if group is None:
                return None
            ids = file.read_row_group(group, columns=["label"])["label"].to_numpy()
            place = int(np.searchsorted(ids, object_id))
            if place == len(ids) or ids[place] != object_id:
                return None
            row = file.read_row_group(group).slice(place, 1)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise OutputError(_word_damaged_table(table)) from error
    cells = [(field.name, _clean(row[field.name][0].as_py()), _describe(field)) for field in row.schema]
    values = {name: value for name, value, _ in cells}
    y0, x0, y1, x1 = (int(values[f"bbox-{axis}"]) for axis in range(4))
    return ObjectRow((y0, x0, y1, x1), cells)


def summarise_objects(table: Path, shape: tuple[int, int], cell: int) -> ObjectSummary:
    """Count all objects in cells of the slide, by class.

    The table is read piece by piece; ten bytes an object stay.

    Args:
        table: See `find_row`.
        shape: Height and width of level 0.
        cell: Side of a cell, in pixels.

    Raises:
        OutputError: The table is damaged or gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: list[str] = []
    densities = [DensityMap.empty(shape, cell)]
    ids, numbers, areas = [np.zeros(0, np.int64)], [np.zeros(0, np.uint16)], [np.zeros(0)]
    try:
        with pq.ParquetFile(table) as file:
            has_classes = _CLASS in file.schema_arrow.names
            columns = ["label", "area", *_PLACE, *([_CLASS] if has_classes else [])]
            for batch in file.iter_batches(columns=columns):
                found = batch[_CLASS].to_numpy(zero_copy_only=False).astype(str) if has_classes else np.array([""])
                unique, inverse = np.unique(found, return_inverse=True)
                names += [name for name in unique.tolist() if name not in names]
                densities += [DensityMap.empty(shape, cell) for _ in range(len(names) - len(densities))]
                number = np.array([names.index(name) for name in unique.tolist()])[inverse]
                number = np.broadcast_to(number, batch.num_rows)
                y, x = (batch[name].to_numpy() for name in _PLACE)
                for one in range(len(names)):
                    densities[one].add(y[number == one], x[number == one])
                ids.append(batch["label"].to_numpy().astype(np.int64))
                numbers.append(number.astype(np.uint16))
                areas.append(batch["area"].to_numpy().astype(np.float64))
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise OutputError(_word_damaged_table(table)) from error
    median = float(np.median(np.concatenate(areas))) if len(ids) > 1 else 0.0
    class_names = tuple(names) if has_classes else ()
    return ObjectSummary(
        np.concatenate(ids), np.concatenate(numbers), class_names, densities, cell, 2 * math.sqrt(median / math.pi)
    )


def _find_group(metadata: Any, object_id: int) -> int | None:
    """Find the group of rows that holds an id, by the least and greatest of each group."""
    column = metadata.schema.names.index("label")
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is not None and statistics.min <= object_id <= statistics.max:
            return group
    return None


def _clean(value: Any) -> Any:
    """Return a value that JSON has: None for what isn't finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(field: Any) -> str:
    return str((field.metadata or {}).get(b"description", b"").decode())


def _word_damaged_table(table: Path) -> str:
    return f"{table} is damaged or gone: remove it, then `slidesam export` writes it again"
