"""The table of objects with their outlines as GeoParquet 1.1, by ascending id.

References:
    https://geoparquet.org/releases/v1.1.0/
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np

from slidesam.tasks.export.columns import Columns, describe_columns
from slidesam.tasks.export.rows import read_outlines, read_rows
from slidesam.tasks.export.table import write_pieces
from slidesam.tasks.run.run import Run

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_geoparquet(run: Run, file: IO[bytes]) -> None:
    """Write each object's row with its outline in `geometry`, in px of level 0, and the box of that in `bbox`.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    import pyarrow as pa

    boxes = pa.field("bbox", pa.struct([(corner, pa.float64()) for corner in _CORNERS]))
    pieces = map(_convert, read_rows(run, list(describe_columns(run)), with_polygons=True))
    content = _describe_geometry(run)
    content["columns"]["geometry"]["covering"] = {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}}
    write_pieces(run, file, pieces, [boxes, pa.field("geometry", pa.binary())], {"geo": json.dumps(content)})


def write_shapes(run: Run, file: IO[bytes]) -> None:
    """Write each object's number and outline, such that geopandas takes the number for the index.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    import pyarrow as pa

    pieces = (
        {"label": rows["label"], "geometry": pa.array(rows["geometry"], pa.binary())}
        for rows in read_rows(run, ["label"], with_polygons=True)
    )
    # What pandas asks for, of which geopandas reads the index.
    kind = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    label = {"name": "label", "field_name": "label", **kind}
    index = {"index_columns": ["label"], "column_indexes": [], "columns": [label], "pandas_version": "2.2.0"}
    metadata = {"geo": json.dumps(_describe_geometry(run)), "pandas": json.dumps(index)}
    write_pieces(run, file, pieces, [pa.field("geometry", pa.binary())], metadata, ["label"])


def _convert(rows: Columns) -> dict[str, Any]:
    import pyarrow as pa

    geometry, bounds = rows.pop("geometry"), rows.pop("bounds")
    boxes = pa.StructArray.from_arrays([pa.array(column) for column in bounds.T], _CORNERS)
    return {**rows, "bbox": boxes, "geometry": pa.array(geometry, pa.binary())}


def _describe_geometry(run: Run) -> dict[str, Any]:
    """Return what GeoParquet asks for: no coordinate reference system, as a slide isn't on Earth."""
    types, corners = set[str](), []
    for part in read_outlines(run, "polygons"):
        types.update(part.facts["types"])
        if part.facts["types"]:
            bounds = part.read("bounds")
            corners.append(np.append(bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)))
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(types), "crs": None, "edges": "planar"}
    if corners:
        boxes = np.array(corners)
        column["bbox"] = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
