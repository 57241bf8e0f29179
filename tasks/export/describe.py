"""Describe the objects of some tiles: rows of the table, and outlines as text.

An object is described whole, wherever blocks and tiles end: its tile reads a window that holds all of its pixels.
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.export.columns import Columns, ObjectClasses, complete_columns, list_measurements, name_channels
from slidesam.tasks.export.geojson import FeatureClasses, encode_features
from slidesam.tasks.export.index import ObjectIndex, cover, object_folder, read_index
from slidesam.tasks.export.measures import measure_objects
from slidesam.tasks.export.outlines import trace_outlines
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.stains import unmix_stains
from slidesam.tasks.run.array_files import read_array_facts, write_arrays
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.batches import Batch, batch_name
from slidesam.tasks.store.arrays import open_levels, read_region
from slidesam.tasks.store.readers import open_display

# An object that is longer or wider, in pixels, is described from a window of its own, so that it makes no other's larger.
_LONGEST_SHARED = 2048
# The quickest: a slide with a million objects has gigabytes of text.
_GZIP_LEVEL = 1


class Described(NamedTuple):
    """Objects of one tile.

    Attributes:
        columns: Columns of the table, each (n,), by ascending id.
        features: Their outlines as GeoJSON Features, joined by commas.
    """

    columns: Columns
    features: bytes


def describe_batch(run: Run, tile_ids: Batch) -> None:
    """Describe the objects of tiles that follow each other, unless that is done.

    Raises:
        DamagedError: The label image, the image or the index is damaged.
        OutputError: What is found can't be written.
    """
    path = object_folder(run).part("described", batch_name(tile_ids))
    if read_array_facts(path) is not None:
        return
    tables: list[Columns] = []
    members: list[bytes] = []
    for index in read_index(run, tile_ids):
        for described in _describe(run, index) if index.ids.size else ():
            tables.append(described.columns)
            # Compressed at once, so that only one tile's text is in memory.
            members.append(compress((b",\n" if any(members) else b"") + described.features))
    arrays: Columns = {}
    if tables:
        order = np.argsort(np.concatenate([table["label"] for table in tables]), kind="stable")
        for name in list(tables[0]):
            arrays[f"column {name}"] = np.concatenate([table.pop(name) for table in tables])[order]
    arrays["outlines"] = np.frombuffer(b"".join(members), np.uint8)
    write_arrays(path, arrays, {"columns": [name.removeprefix("column ") for name in arrays if name != "outlines"]})


def compress(text: bytes) -> bytes:
    """Compress as one member of a gzip file; members that follow each other are one file. Without a time, so equal bytes."""
    return gzip.compress(text, _GZIP_LEVEL, mtime=0) if text else b""


def _describe(run: Run, index: ObjectIndex) -> Iterator[Described]:
    """Describe a tile's objects: most of them together, large ones alone."""
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    is_large = (sides > _LONGEST_SHARED).any(axis=1)
    groups = [np.flatnonzero(~is_large), *np.flatnonzero(is_large)[:, np.newaxis]]
    for rows in groups:
        if rows.size:
            yield _describe_window(run, ObjectIndex(*(column[rows] for column in index)))


def _describe_window(run: Run, index: ObjectIndex) -> Described:
    window = cover(index.boxes)
    labels = _read_labels(run, window, index.ids)
    reader = open_display(run, run.slide.channels)
    try:
        pixels = reader.read(window)
    finally:
        reader.close()
    origin = window.y0, window.x0
    planes = [pixels, unmix_stains(pixels)] if run.slide.is_rgb else [pixels]
    measured = measure_objects(labels, planes, index.ids.size, name_channels(run.slide), origin)
    del pixels, planes
    if (measured["area"] != index.area).any():
        raise DamagedError(
            f"{run.paths.label_image} doesn't show the objects that its blocks have",
            "`slidesam verify` on the output folder names what is damaged",
        )
    classes = ObjectClasses.read(run, index.ids)
    columns = complete_columns(run, index, measured, classes)
    names, values = list_measurements(columns)
    outlines = trace_outlines(labels, index.ids.size)
    shown = None if classes.probability is None else FeatureClasses(list(classes.shown), classes.numbers)
    features = encode_features(outlines, origin, _make_uuids(run, index.ids), names, values, shown)
    return Described(columns, features)


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
