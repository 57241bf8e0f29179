"""Describe the objects of some tiles: rows of the table, and outlines as text or as polygons.

An object is described whole, wherever blocks and tiles end: its tile reads a window that holds all of its pixels.
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.export.columns import Columns, ObjectClasses, complete_columns, list_measurements, name_channels
from slidesam.tasks.export.geojson import FeatureClasses, encode_features
from slidesam.tasks.export.index import (
    COLUMN,
    ROWS,
    ObjectIndex,
    OutlineForm,
    cover,
    object_folder,
    outline_part,
    read_index,
)
from slidesam.tasks.export.measures import measure_objects
from slidesam.tasks.export.outlines import Outlines, trace_outlines
from slidesam.tasks.export.shapes import Polygons, encode_polygons, simplify_outlines
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.stains import unmix_stains
from slidesam.tasks.run.array_files import load_arrays, read_array_facts, write_arrays
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.batches import Batch, batch_name
from slidesam.tasks.store.arrays import open_levels, read_region
from slidesam.tasks.store.readers import open_display

# An object that is longer or wider, in pixels, is described from a window of its own, so that it makes no other's larger.
_LONGEST_SHARED = 2048
# The quickest: a slide with a million objects has gigabytes of text.
_GZIP_LEVEL = 1


class _Window(NamedTuple):
    """The objects that are described together.

    Attributes:
        columns: Their rows, each column (n,), by ascending id.
        classes: Their classes.
        origin: (y, x) of the window on the slide.
    """

    columns: Columns
    classes: ObjectClasses
    origin: tuple[int, int]


def describe_batch(run: Run, tile_ids: Batch, forms: Collection[OutlineForm]) -> None:
    """Describe the objects of tiles that follow each other: their rows, and their outlines in these forms; what is done stays.

    Raises:
        DamagedError: The label image, the image or the index is damaged.
        OutputError: What is found can't be written.
    """
    path = object_folder(run).part(ROWS, batch_name(tile_ids))
    known = _read_columns(path)
    paths = {form: object_folder(run).part(outline_part(run, form), batch_name(tile_ids)) for form in forms}
    missing = [form for form, path in paths.items() if read_array_facts(path) is None]
    if known is not None and not missing:
        return
    tables: list[Columns] = []
    outlined = {form: _COLLECTORS[form]() for form in missing}
    for window in _cut_windows(read_index(run, tile_ids)):
        columns = _describe_window(run, window, known, outlined)
        if known is None:
            tables.append(columns)
    for form, collected in outlined.items():
        collected.write(paths[form])
    if known is None:
        arrays = _sort_columns(tables)
        write_arrays(path, arrays, {"columns": [name.removeprefix(COLUMN) for name in arrays]})


def _read_columns(path: Path) -> Columns | None:
    """Read the columns of a task that described its rows."""
    if read_array_facts(path) is None:
        return None
    columns = load_arrays(path)
    return {name.removeprefix(COLUMN): column for name, column in columns.items()}


def _sort_columns(tables: list[Columns]) -> Columns:
    """Join columns by ascending id; empties the tables, so that each column is in memory twice only while it is joined."""
    if not tables:
        return {}
    order = np.argsort(np.concatenate([table["label"] for table in tables]), kind="stable")
    return {f"{COLUMN}{name}": np.concatenate([table.pop(name) for table in tables])[order] for name in list(tables[0])}


class _Features:
    """Outlines as GeoJSON Features, compressed at once, so that only one window's text is in memory."""

    def __init__(self) -> None:
        self._members: list[bytes] = []

    def add(self, run: Run, window: _Window, outlines: Outlines) -> None:
        names, values = list_measurements(window.columns)
        classes = window.classes
        shown = None if classes.probability is None else FeatureClasses(list(classes.shown), classes.numbers)
        ids = _make_uuids(run, window.columns["label"])
        features = encode_features(outlines, window.origin, ids, names, values, shown)
        self._members.append(compress((b",\n" if any(self._members) else b"") + features))

    def write(self, path: Path) -> None:
        write_arrays(path, {"outlines": np.frombuffer(b"".join(self._members), np.uint8)})


class _Polygons:
    """Outlines as WKB, by ascending id."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int64]] = []
        self._found: list[Polygons] = []

    def add(self, run: Run, window: _Window, outlines: Outlines) -> None:
        del run
        self._ids.append(window.columns["label"])
        self._found.append(encode_polygons(outlines, window.origin))

    def write(self, path: Path) -> None:
        if not self._ids:
            write_arrays(path, {}, {"types": []})
            return
        order = np.argsort(np.concatenate(self._ids), kind="stable")
        texts, bounds, is_multi = (np.concatenate(column)[order] for column in zip(*self._found, strict=True))
        starts = np.cumsum([0, *map(len, texts)])
        arrays = {"bytes": np.frombuffer(b"".join(texts), np.uint8), "starts": starts, "bounds": bounds}
        types = np.array(["Polygon", "MultiPolygon"])[np.unique(is_multi).astype(int)]
        write_arrays(path, arrays, {"types": types.tolist()})


_COLLECTORS: dict[OutlineForm, type[_Features | _Polygons]] = {"features": _Features, "polygons": _Polygons}


def compress(text: bytes) -> bytes:
    """Compress as one member of a gzip file; members that follow each other are one file. Without a time, so equal bytes."""
    return gzip.compress(text, _GZIP_LEVEL, mtime=0) if text else b""


def _cut_windows(tiles: Iterable[ObjectIndex]) -> Iterator[ObjectIndex]:
    """Group objects by the window that they are described from: most of a tile's together, large ones alone."""
    for index in tiles:
        sides = index.boxes[:, 2:] - index.boxes[:, :2]
        is_large = (sides > _LONGEST_SHARED).any(axis=1)
        groups = [np.flatnonzero(~is_large), *np.flatnonzero(is_large)[:, np.newaxis]]
        yield from (ObjectIndex(*(column[rows] for column in index)) for rows in groups if rows.size)


def _describe_window(
    run: Run, index: ObjectIndex, known: Columns | None, outlined: Mapping[OutlineForm, _Features | _Polygons]
) -> Columns:
    region = cover(index.boxes)
    labels = _read_labels(run, region, index.ids)
    classes = ObjectClasses.read(run, index.ids)
    if known is None:
        columns = _measure(run, index, region, labels, classes)
    else:
        rows = np.searchsorted(known["label"], index.ids)
        columns = {name: column[rows] for name, column in known.items()}
    if outlined:
        outlines = simplify_outlines(trace_outlines(labels, index.ids.size), run.settings.output.simplify)
        for collected in outlined.values():
            collected.add(run, _Window(columns, classes, (region.y0, region.x0)), outlines)
    return columns


def _measure(
    run: Run, index: ObjectIndex, region: Region, labels: NDArray[np.uint32], classes: ObjectClasses
) -> Columns:
    reader = open_display(run, run.slide.channels)
    try:
        pixels = reader.read(region)
    finally:
        reader.close()
    planes = [pixels, unmix_stains(pixels)] if run.slide.is_rgb else [pixels]
    measured = measure_objects(labels, planes, index.ids.size, name_channels(run.slide), (region.y0, region.x0))
    if (measured["area"] != index.area).any():
        raise DamagedError(
            f"{run.paths.label_image} doesn't show the objects that its blocks have",
            "`slidesam verify` on the output folder names what is damaged",
        )
    return complete_columns(run, index, measured, classes)


def _read_labels(run: Run, window: Region, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Read labels of a window, the given ids as 1, 2, ..., all others as 0."""
    level = open_levels(run.paths.label_image, run.settings.image.ome_zarr)[0]
    labels = read_region(level, window)
    local = np.zeros(max(int(labels.max(initial=0)), int(ids[-1])) + 1, np.uint32)
    local[ids] = np.arange(1, ids.size + 1, dtype=np.uint32)
    return np.asarray(local[labels])


def _make_uuids(run: Run, ids: NDArray[np.int64]) -> list[str]:
    """Name objects for programs that want a UUID: by the slide's content, wherever it lies, the label and the object."""
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"slidesam {run.slide.identity.digest} {run.label}")
    return [str(uuid.uuid5(space, str(number))) for number in ids.tolist()]
