"""The table of objects as AnnData: measurements as a matrix, and beside it coordinates and what else is known of each object.

Written by AnnData's definition of its format on disk, piece by piece, into HDF5 or Zarr alike; anndata itself writes a table that
is whole in memory.

References:
    https://anndata.readthedocs.io/en/stable/fileformat-prose.html
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.export.columns import Columns, describe_columns, name_channels
from slidesam.tasks.export.measures import list_columns
from slidesam.tasks.export.rows import count_rows, read_rows, read_types
from slidesam.tasks.run.run import Run

_CENTROID = ("centroid-1", "centroid-0")
_CENTROID_UM = ("centroid_um-1", "centroid_um-0")
_BOX = ("bbox-0", "bbox-1", "bbox-2", "bbox-3")
_ARRAY, _STRINGS = ("array", "0.2.0"), ("string-array", "0.2.0")


class Backend(NamedTuple):
    """How HDF5 or Zarr makes an array.

    Attributes:
        text: Its type of strings.
        create: What makes an array in a group, by its name, shape and type.
    """

    text: Any
    create: Any


class Annotation(NamedTuple):
    """What is said of the table beside its objects.

    Attributes:
        constants: Columns with one text for all objects.
        notes: Mappings in `uns`, by name.
    """

    constants: Mapping[str, str] = {}
    notes: Mapping[str, Mapping[str, Any]] = {}


_NOTHING = Annotation()


def write_anndata(run: Run, file: IO[bytes]) -> None:
    """Write the objects by ascending id as AnnData in HDF5 (.h5ad).

    Raises:
        DamagedError: What was described is damaged or gone.
        OutputError: h5py isn't installed here.
    """
    if importlib.util.find_spec("h5py") is None:
        raise OutputError("writing AnnData needs h5py", 'pip install "slidesam[anndata]" where tasks run')
    import h5py

    def create(group: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return group.create_dataset(name, shape=shape, dtype=dtype)

    with h5py.File(file, "w") as root:
        write_annotated(run, root, Backend(h5py.string_dtype(), create))


def write_annotated(run: Run, root: Any, backend: Backend, annotation: Annotation = _NOTHING) -> None:
    """Write the objects into an empty group.

    Args:
        run: A run whose objects are described.
        root: A group of h5py or zarr.
        backend: How that makes arrays.
        annotation: What is said beside.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    writer = _Writer(backend)
    writer.mark(root, "anndata", "0.1.0")
    meanings = describe_columns(run)
    measured = _list_measured(run)
    points = {"spatial": _CENTROID} | ({"spatial_um": _CENTROID_UM} if run.slide.mpp is not None else {})
    known = [name for name in meanings if name not in measured and not name.startswith("centroid")]
    n_rows, types = count_rows(run), read_types(run)
    frame = writer.frame(root, "obs", [*known, *annotation.constants], n_rows)
    columns = {name: writer.column(frame, name, types[name], n_rows, _list_texts(run, name, types)) for name in known}
    for name, text in annotation.constants.items():
        # Codes of the only category are 0, as are arrays that nothing is written into.
        writer.column(frame, name, np.dtype(str), n_rows, [text])
    matrix = writer.array(root, "X", (n_rows, len(measured)), np.float32)
    placed = writer.group(root, "obsm")
    places = {name: writer.array(placed, name, (n_rows, 2), np.float64) for name in points}
    start = 0
    for rows in read_rows(run, list(meanings)):
        stop = start + rows["label"].size
        frame["_index"][start:stop] = rows["label"].astype(str).astype(object)
        for column in columns.values():
            column.put(start, stop, rows)
        matrix[start:stop] = np.column_stack([rows[name] for name in measured]).astype(np.float32)
        for name, axes in points.items():
            places[name][start:stop] = np.column_stack([rows[axis] for axis in axes])
        start = stop
    writer.texts(writer.frame(root, "var", ["description"], len(measured), measured), "description", meanings, measured)
    for name in ("layers", "obsp", "varm", "varp"):
        writer.group(root, name)
    notes = writer.group(root, "uns")
    for name, content in ({"slidesam": _describe_source(run)} | dict(annotation.notes)).items():
        writer.mapping(notes, name, content)


def _list_measured(run: Run) -> list[str]:
    """List the columns that are measurements: those of the matrix."""
    places = {*_CENTROID, *_BOX}
    in_pixels = [name for name in list_columns(name_channels(run.slide)) if name not in places]
    in_um = [name for name in describe_columns(run) if name == "area_um2" or name.removesuffix("_um") in in_pixels]
    return [*in_pixels, *(name for name in in_um if name not in in_pixels)]


def _describe_source(run: Run) -> dict[str, Any]:
    """Return what a table was made of; the record of the run says more."""
    return {
        "slide": run.name,
        "label": run.label,
        "record": run.paths.provenance.name,
        "export": run.fingerprints["export"],
        "segmenter": run.settings.segmenter.kind,
        **({} if run.slide.mpp is None else {"mpp_yx": np.array(run.slide.mpp)}),
    }


def _list_texts(run: Run, name: str, types: Mapping[str, np.dtype[Any]]) -> list[str] | None:
    """List the texts that a column has, sorted; None of a column of numbers."""
    if types[name].kind != "U":
        return None
    found = set[str]()
    for rows in read_rows(run, ["label", name]):
        found.update(np.unique(rows[name]).tolist())
    return sorted(found)


class _Column(NamedTuple):
    """A column of `obs` that is filled piece by piece; of a column of texts each row is a number in `texts`."""

    name: str
    array: Any
    texts: NDArray[Any] | None

    def put(self, start: int, stop: int, rows: Columns) -> None:
        values = rows[self.name]
        self.array[start:stop] = values if self.texts is None else np.searchsorted(self.texts, values)


class _Writer(NamedTuple):
    """Makes AnnData's elements; each says of what kind it is."""

    backend: Backend

    @staticmethod
    def mark(element: Any, kind: str, version: str, **attributes: Any) -> Any:
        element.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
        return element

    def group(self, parent: Any, name: str) -> Any:
        return self.mark(parent.create_group(name), "dict", "0.1.0")

    def array(self, parent: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.mark(self.backend.create(parent, name, shape, dtype), *_ARRAY)

    def texts(self, parent: Any, name: str, texts: Mapping[str, str] | None, keys: Sequence[str]) -> Any:
        array = self.backend.create(parent, name, (len(keys),), self.backend.text)
        array[:] = np.array([key if texts is None else texts[key] for key in keys], object)
        return self.mark(array, *_STRINGS)

    def frame(self, parent: Any, name: str, columns: Sequence[str], n_rows: int, index: Sequence[str] = ()) -> Any:
        group = parent.create_group(name)
        if index:
            self.texts(group, "_index", None, index)
        else:
            self.mark(self.backend.create(group, "_index", (n_rows,), self.backend.text), *_STRINGS)
        return self.mark(group, "dataframe", "0.2.0", _index="_index", **{"column-order": list(columns)})

    def column(self, frame: Any, name: str, dtype: np.dtype[Any], n_rows: int, texts: Sequence[str] | None) -> _Column:
        if texts is None:
            return _Column(name, self.array(frame, name, (n_rows,), dtype), None)
        group = self.mark(frame.create_group(name), "categorical", "0.2.0", ordered=False)
        self.texts(group, "categories", None, texts)
        return _Column(name, self.array(group, "codes", (n_rows,), np.int16), np.array(texts))

    def mapping(self, parent: Any, name: str, content: Mapping[str, Any]) -> None:
        group = self.group(parent, name)
        for key, value in content.items():
            if isinstance(value, str):
                array = self.mark(self.backend.create(group, key, (), self.backend.text), "string", "0.2.0")
                array[()] = value
            else:
                self.array(group, key, value.shape, value.dtype)[:] = value
