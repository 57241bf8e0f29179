"""A result as SpatialData: image, labels, outlines and table in one Zarr folder, all in pixels of the slide's full resolution.

SpatialData takes images of (c, y, x) and labels of (y, x), where the store has TCZYX with one time point and one plane. Shards of
both hold the same bytes: what lies in the store is linked under its shorter name (hard links, which take no room and can't point
nowhere), and copied where the file system has no such links. slidesam writes the rest itself: the package spatialdata asks for
versions of Dask that it can't be installed beside.

References:
    https://spatialdata.scverse.org/en/stable/design_doc.html
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.export.annotated import Annotation, Backend, write_annotated
from slidesam.tasks.export.geoparquet import write_shapes
from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run

IMAGE, OUTLINES, TABLE = "image", "outlines", "table"
# Of the folder, its tables, and its images, labels and shapes, as spatialdata 0.5 and later read them.
_CONTAINER, _TABLES, _ELEMENTS = "0.2", "0.2", "0.3"
_AXES = "tczyx"
_TABLE_ROWS = 2**16
Links = dict[Path, Path]


def write_spatialdata(run: Run, folder: Path) -> Links:
    """Write everything into an empty folder.

    Args:
        run: A run whose labels are finished, and whose objects are described.
        folder: The folder.

    Returns:
        For each file that is one of the store's, under another name: the file in the store.

    Raises:
        DamagedError: What was described, or metadata of the store, is damaged or gone.
        OSError: The folder can't be written.
    """
    attributes = {"spatialdata_attrs": {"version": _CONTAINER, "spatialdata_software_version": "slidesam"}}
    root = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    images, labels, shapes, tables = (root.create_group(name) for name in ("images", "labels", "shapes", "tables"))
    labels.attrs["ome"] = {"labels": [run.label]}
    links = _link_pyramid(run, images, IMAGE, run.store, "cyx")
    links |= _link_pyramid(run, labels, run.label, run.paths.label_image, "yx")
    transformation = _describe_transformation("xy", {})
    shapes.create_group(
        OUTLINES,
        attributes={
            "encoding-type": "ngff:shapes", "axes": ["x", "y"], "coordinateTransformations": [transformation],
            "spatialdata_attrs": {"version": _ELEMENTS},
        },
    )  # fmt: skip
    with (folder / "shapes" / OUTLINES / "shapes.parquet").open("wb") as file:
        write_shapes(run, file)
    _write_table(run, tables)
    with warnings.catch_warnings():
        # Zarr v3 doesn't define consolidated metadata yet; spatialdata looks there first.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(root.store)
    return links


def _write_table(run: Run, tables: zarr.Group) -> None:
    """Write the table; its rows belong to the labels."""
    target = {"region": run.label, "region_key": "element", "instance_key": "label"}
    table = tables.create_group(TABLE)

    def create(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        chunks = tuple(max(1, min(side, _TABLE_ROWS)) for side in shape)
        return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks)

    write_annotated(
        run, table, Backend("string", create), Annotation({"element": run.label}, {"spatialdata_attrs": target})
    )
    table.attrs.update({"spatialdata-encoding-type": "ngff:regions_table", "version": _TABLES, **target})


def _link_pyramid(run: Run, parent: zarr.Group, name: str, source: Path, axes: str) -> Links:
    """Show a pyramid of the store under fewer axes; returns which file is which one of the store's."""
    content = _read_metadata(source)["attributes"]["ome"]
    datasets = content["multiscales"][0]["datasets"]
    kept = [_AXES.index(axis) for axis in axes]
    scales = [_read_scale(dataset, kept) for dataset in datasets]
    finest = _read_metadata(run.paths.label_image)["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    unit, _ = _read_scale(finest, kept)
    levels = [
        {
            "path": dataset["path"],
            "coordinateTransformations": [
                {"type": "scale", "scale": _divide(scale, scales[0][0])},
                {"type": "translation", "translation": _divide(shift, scales[0][0])},
            ],
        }
        for dataset, (scale, shift) in zip(datasets, scales, strict=True)
    ]
    # Of the store's finest level, which is coarser than the slide's where the slide isn't converted.
    factors = dict(zip(axes, _divide(scales[0][0], unit), strict=True))
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "channel" if axis == "c" else "space"} for axis in axes],
        "datasets": levels,
        "coordinateTransformations": [_describe_transformation(axes, factors)],
    }
    described: dict[str, Any] = {"version": "0.5-dev-spatialdata", "multiscales": [multiscale]}
    if "c" in axes:
        described["omero"] = {"channels": [{"label": each["label"]} for each in content["omero"]["channels"]]}
    else:
        described["image-label"] = {"version": "0.5"}
    group = parent.create_group(name, attributes={"ome": described, "spatialdata_attrs": {"version": _ELEMENTS}})
    target = Path(str(group.store_path).removeprefix("file://"))
    links: Links = {}
    for dataset in datasets:
        links |= _link_array(source / dataset["path"], target / dataset["path"], kept)
    return links


def _read_scale(dataset: dict[str, Any], kept: Sequence[int]) -> tuple[list[float], list[float]]:
    """Read scale and translation of a level, of the axes that are kept."""
    steps = {step["type"]: step[step["type"]] for step in dataset["coordinateTransformations"]}
    shift = steps.get("translation", [0.0] * len(_AXES))
    return [steps["scale"][axis] for axis in kept], [shift[axis] for axis in kept]


def _divide(numbers: Sequence[float], divisors: Sequence[float]) -> list[float]:
    return [number / divisor for number, divisor in zip(numbers, divisors, strict=True)]


def _describe_transformation(axes: str, factors: dict[str, float]) -> dict[str, Any]:
    """Return how an element becomes pixels of the slide's full resolution, which are called `global`."""
    described = [
        {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", "unit": "unit"}
        for axis in axes
    ]
    ends = {"input": {"name": axes, "axes": described}, "output": {"name": "global", "axes": described}}
    if all(factor == 1 for factor in factors.values()):
        return {"type": "identity", **ends}
    return {"type": "scale", "scale": [factors[axis] for axis in axes], **ends}


def _link_array(source: Path, target: Path, kept: Sequence[int]) -> Links:
    """Link the shards of an array of TCZYX under the numbers of some of its axes; the others have a single one."""
    metadata = _read_metadata(source)
    grid, codec = metadata["chunk_grid"]["configuration"], metadata["codecs"][0]["configuration"]
    for owner, key in (
        (metadata, "shape"),
        (grid, "chunk_shape"),
        (codec, "chunk_shape"),
        (metadata, "dimension_names"),
    ):
        owner[key] = [owner[key][axis] for axis in kept]
    target.mkdir()
    (target / "zarr.json").write_text(json.dumps(metadata, indent=2))
    links: Links = {}
    for place, _, names in os.walk(source / "c"):
        for name in names:
            path = Path(place, name)
            numbers = path.relative_to(source).parts[1:]
            if len(numbers) == len(_AXES) and all(number.isdecimal() for number in numbers):
                linked = target.joinpath("c", *(numbers[axis] for axis in kept))
                linked.parent.mkdir(parents=True, exist_ok=True)
                _link(path, linked)
                links[linked] = path
    return links


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    # A file system without hard links, or one that allows no more of this file.
    shutil.copyfile(source, target)


def _read_metadata(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "zarr.json")
    if content is None:
        raise DamagedError(f"{folder / 'zarr.json'} is damaged", "`slidesam verify` on the output folder restores it")
    return content


def list_known_files(run: Run) -> dict[str, tuple[int, int]]:
    """Return size and checksum of the store's files, by path below the output folder, as image and labels list them."""
    lists = [FileList.read(paths.file_list) for paths in (run.paths, run.paths.image)]
    return {path: facts for found in lists if found is not None for path, facts in found.files.items()}
