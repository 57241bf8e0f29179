"""The table of objects: Parquet, a row per object by ascending id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.rows import read_rows
from slidesam.tasks.run.run import Run

# All others are float64.
_TYPES = {
    **dict.fromkeys(("label", *(f"bbox-{side}" for side in range(4)), "area", "block", "blocks"), "int64"),
    **dict.fromkeys(("disputed", "touches_edge"), "bool"),
    **dict.fromkeys(("region", "class"), "string"),
    "fragments": "int32",
}


def write_table(run: Run, file: IO[bytes]) -> None:
    """Merge the tasks' rows, which each task has by id, into one table by id.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    write_pieces(run, file, read_rows(run, list(describe_columns(run))))


def write_pieces(
    run: Run,
    file: IO[bytes],
    pieces: Iterable[Mapping[str, Any]],
    added: Sequence[Any] = (),
    metadata: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write rows of the table as Parquet.

    Args:
        run: The run.
        file: The file.
        pieces: Rows that follow each other.
        added: Fields of pyarrow of further columns.
        metadata: Written into the file beside what it is a table of.
        names: Columns of `describe_columns`; by default all, after one with the slide's name, so that the tables of many slides
            are one data set. As Parquet has it, it takes no room.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    meanings = {name: text for name, text in describe_columns(run).items() if names is None or name in names}
    table_of = {"slide": run.name, "label": run.label, "mpp": run.slide.mpp, "export": run.fingerprints["export"]}
    fields = [
        pa.field(name, pa.type_for_alias(_TYPES.get(name, "float64")), metadata={"description": text})
        for name, text in meanings.items()
    ]
    slide = [pa.field("slide", pa.string(), metadata={"description": "Name of the slide."})] if names is None else []
    schema = pa.schema([*slide, *fields, *added], {"slidesam": json.dumps(table_of), **(metadata or {})})
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in pieces:
            # What isn't known is NaN, of whichever type the column is.
            columns = [pa.array(rows[field.name], from_pandas=True).cast(field.type) for field in [*fields, *added]]
            slides = [pa.repeat(pa.scalar(run.name), len(columns[0])) for _ in slide]
            writer.write_table(pa.Table.from_arrays([*slides, *columns], schema=schema))
