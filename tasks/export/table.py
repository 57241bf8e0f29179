"""The table of objects: Parquet, a row per object by ascending id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.rows import read_rows
from slidesam.tasks.run.run import Run


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
) -> None:
    """Write rows of the table as Parquet.

    Args:
        run: The run.
        file: The file.
        pieces: Rows that follow each other: every column of `describe_columns`, and those that are added.
        added: Fields of pyarrow of further columns.
        metadata: Written into the file beside what it is a table of.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    meanings = describe_columns(run)
    table_of = {"slide": run.name, "label": run.label, "mpp": run.slide.mpp, "export": run.fingerprints["export"]}

    def make_schema(types: Mapping[str, Any]) -> Any:
        fields = [
            pa.field(name, types.get(name, pa.float64()), metadata={"description": text})
            for name, text in meanings.items()
        ]
        return pa.schema([*fields, *added], {"slidesam": json.dumps(table_of), **(metadata or {})})

    schema = writer = None
    for rows in pieces:
        if writer is None:
            schema = make_schema({name: pa.array(rows[name]).type for name in meanings})
            writer = pq.ParquetWriter(file, schema, compression="zstd")
        writer.write_table(pa.table(dict(rows), schema=schema))
    if writer is None:
        writer = pq.ParquetWriter(file, make_schema({}), compression="zstd")
    writer.close()
