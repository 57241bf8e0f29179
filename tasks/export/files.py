"""The files of the objects: joined from what tasks described, written whole or not at all, and listed with their checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple

from slidesam.tasks.export.annotated import write_anndata
from slidesam.tasks.export.feature_file import write_outlines
from slidesam.tasks.export.geoparquet import write_geoparquet
from slidesam.tasks.export.index import OutlineForm, object_folder, outline_part
from slidesam.tasks.export.report_file import write_report
from slidesam.tasks.export.spatial import Links, list_known_files, write_spatialdata
from slidesam.tasks.export.table import write_table
from slidesam.tasks.run.files import replacing
from slidesam.tasks.run.folders import replacing_folder
from slidesam.tasks.run.layout import SPATIALDATA
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import ExportFormat
from slidesam.tasks.store.file_list import Files, describe, find_size_damage, vouch_for


class FileFormat(NamedTuple):
    """A format that is one file.

    Attributes:
        ending: The end of its name.
        write: Writes it from a run whose objects are described.
        outlines: The form in which it needs outlines.
    """

    ending: str
    write: Callable[[Run, IO[bytes]], None]
    outlines: OutlineForm | None = None


class FolderFormat(NamedTuple):
    """A format that is a folder.

    Attributes:
        ending: The end of its name.
        write: Writes it, and returns which of its files are the store's.
        outlines: The form in which it needs outlines.
    """

    ending: str
    write: Callable[[Run, Path], Links]
    outlines: OutlineForm | None = None


FORMATS: dict[ExportFormat, FileFormat | FolderFormat] = {
    "table": FileFormat("objects.parquet", write_table),
    "outlines": FileFormat("objects.geojson.gz", write_outlines, "features"),
    "geoparquet": FileFormat("objects.outlines.parquet", write_geoparquet, "polygons"),
    "anndata": FileFormat("objects.h5ad", write_anndata),
    "report": FileFormat("report.html", write_report),
    "spatialdata": FolderFormat(SPATIALDATA, write_spatialdata, "polygons"),
}


def missing_formats(run: Run) -> list[ExportFormat]:
    """Return the formats that a run asks for and that aren't written, or whose file has another size or is gone."""
    listed = _read_list(run)
    units = {kind: listed.get(_name_unit(run, kind)) for kind in run.settings.output.formats}
    return [
        kind for kind, files in units.items()
        if files is None or next(find_size_damage(files, run.output), None) is not None
    ]  # fmt: skip


def list_outline_forms(formats: Iterable[ExportFormat]) -> list[OutlineForm]:
    """Return the forms of outlines that these formats are written from."""
    return sorted({form for kind in formats if (form := FORMATS[kind].outlines) is not None})


def _name_unit(run: Run, kind: ExportFormat) -> str:
    """Name a format in the list of files; outlines of another tolerance count as another file."""
    form = FORMATS[kind].outlines
    return kind if form is None else f"{kind}{outline_part(run, form).removeprefix(form)}"


def _read_list(run: Run) -> dict[str, dict[str, tuple[int, int]]]:
    """Read which formats are finished; none of another result under this name."""
    found = FileList.read(run.paths.objects("json"))
    return {} if found is None or found.fingerprint != object_folder(run).path.name else found.units


def write_format(run: Run, kind: ExportFormat) -> Path:
    """Write one file, or folder, of the objects from what was described, and list it.

    Raises:
        DamagedError: What was described is damaged or gone.
        OutputError: It can't be written.
    """
    form = FORMATS[kind]
    path = run.paths.export(form.ending)
    if isinstance(form, FolderFormat):
        files = _write_folder(run, path, form)
    else:
        with replacing(path) as file:
            form.write(run, file)
        files = vouch_for([path], run.output)
    units = {name: listed for name, listed in _read_list(run).items() if not listed.keys() & files.keys()}
    units[_name_unit(run, kind)] = files
    FileList(fingerprint=object_folder(run).path.name, units=units).write(run.paths.objects("json"))
    return path


def _write_folder(run: Run, path: Path, form: FolderFormat) -> Files:
    """Write a folder; of files that are the store's, sizes and checksums are known."""
    with replacing_folder(path) as beside:
        links, known = form.write(run, beside), list_known_files(run)
        files: Files = {}
        for written in sorted(each for each in beside.rglob("*") if each.is_file()):
            source = links.get(written)
            listed = None if source is None else known.get(str(source.relative_to(run.output)))
            name = str((path / written.relative_to(beside)).relative_to(run.output))
            files[name] = describe(written) if listed is None else listed
    return files
