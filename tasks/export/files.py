"""The files of the objects: joined from what tasks described, written whole or not at all, and listed with their checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from slidesam.tasks.export.feature_file import write_outlines
from slidesam.tasks.export.index import object_folder
from slidesam.tasks.export.table import write_table
from slidesam.tasks.run.files import replacing
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import ExportFormat
from slidesam.tasks.store.file_list import find_size_damage, vouch_for


class FileFormat(NamedTuple):
    """One format: the end of its file's name, and what writes it from a run whose objects are described."""

    ending: str
    write: Callable[[Run, IO[bytes]], None]


FORMATS: dict[ExportFormat, FileFormat] = {
    "table": FileFormat("objects.parquet", write_table),
    "outlines": FileFormat("objects.geojson.gz", write_outlines),
}


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
    path = run.paths.export(FORMATS[kind].ending)
    with replacing(path) as file:
        FORMATS[kind].write(run, file)
    units = _read_list(run) | {kind: vouch_for([path], run.output)}
    FileList(fingerprint=object_folder(run).path.name, units=units).write(run.paths.objects("json"))
    return path
