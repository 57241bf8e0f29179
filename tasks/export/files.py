"""The files of the objects: joined from what tasks described, written whole or not at all, and listed with their checksums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.describe import compress
from slidesam.tasks.export.index import object_folder, tile_batches
from slidesam.tasks.run.array_files import ArrayFile
from slidesam.tasks.run.files import replacing
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import ExportFormat
from slidesam.tasks.stitch.batches import batch_name
from slidesam.tasks.store.file_list import find_size_damage, vouch_for

SUFFIXES: dict[ExportFormat, str] = {"table": "parquet", "outlines": "geojson.gz"}
# Rows of a table that are in memory at once.
_ROWS = 2**16
# What is copied at once.
_COPY_BYTES = 2**22


def missing_formats(run: Run) -> list[ExportFormat]:
    """Return the formats that a run asks for and that aren't written, or whose file has another size or is gone."""
    listed = _read_list(run)
    return [
        kind for kind in run.settings.output.formats
        if kind not in listed or next(find_size_damage(listed[kind], run.output), None) is not None
    ]  # fmt: skip


def _read_list(run: Run) -> dict[str, dict[str, tuple[int, int]]]:
    """Read which formats are finished; none of another result under this name."""
    found = FileList.read(run.paths.objects("json"))
    return {} if found is None or found.fingerprint != object_folder(run).path.name else found.units


def write_format(run: Run, kind: ExportFormat) -> Path:
    """Write one file of the objects from what was described, and list it.

    Raises:
        DamagedError: What was described is damaged or gone.
        OutputError: The file can't be written.
    """
    path = run.paths.objects(SUFFIXES[kind])
    with replacing(path) as file:
        _WRITERS[kind](run, file)
    units = _read_list(run) | {kind: vouch_for([path], run.output)}
    FileList(fingerprint=object_folder(run).path.name, units=units).write(run.paths.objects("json"))
    return path


def _write_outlines(run: Run, file: IO[bytes]) -> None:
    """Join the outlines, each task's a member of the gzip file, as a FeatureCollection."""
    file.write(compress(b'{"type":"FeatureCollection","features":[\n'))
    comma = b""
    for described in _read_described(run):
        length = described.shape("outlines")[0]
        if length:
            file.write(comma)
        for start in range(0, length, _COPY_BYTES):
            file.write(described.read("outlines", start, min(start + _COPY_BYTES, length)).tobytes())
        comma = compress(b",\n") if length else comma
    file.write(compress(b"\n]}\n"))


def _write_table(run: Run, file: IO[bytes]) -> None:
    """Merge the tasks' rows, which each task has by id, into one table by id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [part for part in _read_described(run) if "column label" in part.names]
    ids = [part.read("column label") for part in parts]
    meanings = describe_columns(run)
    metadata = {"slide": run.name, "label": run.label, "mpp": run.slide.mpp, "export": run.fingerprints["export"]}
    schema = None
    writer = None
    last = max((int(each[-1]) for each in ids), default=0)
    for first in range(1, last + 1, _ROWS):
        rows = _merge(parts, ids, first, first + _ROWS, list(meanings))
        fields = [
            pa.field(name, pa.array(rows[name]).type, metadata={"description": text}) for name, text in meanings.items()
        ]
        if writer is None:
            schema = pa.schema(fields, {"slidesam": json.dumps(metadata)})
            writer = pq.ParquetWriter(file, schema, compression="zstd")
        writer.write_table(pa.table(rows, schema=schema))
    if writer is None:
        schema = pa.schema([pa.field(name, pa.float64()) for name in meanings], {"slidesam": json.dumps(metadata)})
        writer = pq.ParquetWriter(file, schema, compression="zstd")
    writer.close()


def _merge(
    parts: list[ArrayFile], ids: list[NDArray[np.int64]], first: int, end: int, names: list[str]
) -> dict[str, NDArray[Any]]:
    """Read the rows of the ids from `first` to below `end`."""
    slices = [np.searchsorted(each, (first, end)).tolist() for each in ids]
    found = [(part, *bounds) for part, bounds in zip(parts, slices, strict=True) if bounds[0] < bounds[1]]
    columns = {
        name: np.concatenate([part.read(f"column {name}", *bounds) for part, *bounds in found]) for name in names
    }
    order = np.argsort(columns["label"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _read_described(run: Run) -> Iterator[ArrayFile]:
    folder = object_folder(run)
    return (ArrayFile(folder.part("described", batch_name(batch))) for batch in tile_batches(run))


_WRITERS: dict[ExportFormat, Callable[[Run, IO[bytes]], None]] = {"table": _write_table, "outlines": _write_outlines}
