"""The table of objects: Parquet, a row per object by ascending id."""

from __future__ import annotations

import json
from typing import IO

from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.rows import read_rows
from slidesam.tasks.run.run import Run


def write_table(run: Run, file: IO[bytes]) -> None:
    """Merge the tasks' rows, which each task has by id, into one table by id.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    meanings = describe_columns(run)
    metadata = {"slide": run.name, "label": run.label, "mpp": run.slide.mpp, "export": run.fingerprints["export"]}
    schema = None
    writer = None
    for rows in read_rows(run, list(meanings)):
        if writer is None:
            fields = [
                pa.field(name, pa.array(rows[name]).type, metadata={"description": text})
                for name, text in meanings.items()
            ]
            schema = pa.schema(fields, {"slidesam": json.dumps(metadata)})
            writer = pq.ParquetWriter(file, schema, compression="zstd")
        writer.write_table(pa.table(rows, schema=schema))
    if writer is None:
        schema = pa.schema([pa.field(name, pa.float64()) for name in meanings], {"slidesam": json.dumps(metadata)})
        writer = pq.ParquetWriter(file, schema, compression="zstd")
    writer.close()
