"""Write the output store, an OME-Zarr image pyramid with label pyramids; an unfinished one never looks finished.

1. `create_store`     root group and image levels; the metadata that makes it an image
2. `create_label`     empty arrays of a label pyramid, without metadata: no reader takes them for a label image yet
3. `arrays`           one region of one level, a whole number of shards, by one task
4. `finish_label`     metadata of the label image, then its name in the list of labels

Arrays are TCZYX. OME-Zarr 0.5 keeps its metadata under `ome` in Zarr v3 groups and shards its arrays; 0.4 is Zarr v2, where a
chunk is a file.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core import sync

from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.pixels.plan import group_levels, level_shapes
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.layout import IMAGE, RunPaths
from slidesam.tasks.run.lock import locked
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.slides.zarr.metadata import GROUP_FILES
from slidesam.tasks.store.arrays import FORMATS, ArrayPlan, write_array_metadata
from slidesam.tasks.store.groups import (
    group_folder,
    read_group,
    remove_ome_attributes,
    set_ome_attributes,
    write_group,
)
from slidesam.tasks.store.multiscales import LevelPlace, Pixel, make_multiscale, place_samples

# The root attribute of stores that slidesam made, and so may write to.
_OWNER = "slidesam"
# How long to wait for the end of zarr's thread, in seconds.
_THREAD_TIMEOUT = 10.0
# How long to wait for the list of labels, in seconds: others hold it for a moment only.
_LIST_TIMEOUT = 60.0


def create_store(path: Path, image: ImageSettings, slide_path: Path) -> zarr.Group:
    """Open the output store, or create it.

    Raises:
        OutputError: The path holds something else, or a store of another OME-Zarr version.
        DamagedError: It is slidesam's, and its metadata is damaged.
    """
    if path.resolve() == slide_path.resolve():
        raise OutputError(f"{path.name} in the output folder is the slide itself: choose another output folder")
    zarr_format = FORMATS[image.ome_zarr]
    if not path.exists():
        write_json(_note(path), {"source": str(slide_path)})
        write_group(path, zarr_format, {_OWNER: {"source": str(slide_path)}})
        return zarr.open_group(path, mode="r+")
    if is_damaged_root(path, slide_path):
        raise DamagedError(f"{path} has damaged metadata", "run the same command again")
    group = read_group(path)
    if group is None:
        reason = "exists and is no Zarr group, or has damaged metadata"
        raise OutputError(f"{path} {reason}: move it away, or choose another output folder")
    owner: Any = group.attributes.get(_OWNER)
    if not isinstance(owner, dict):
        raise OutputError(f"{path} exists and wasn't made by slidesam: choose another output folder")
    if owner.get("source") != str(slide_path):
        raise OutputError(
            f"{path} holds results of {owner.get('source')}: choose another output folder for {slide_path}"
        )
    if group.zarr_format != zarr_format:
        raise OutputError(
            f"{path} is not OME-Zarr {image.ome_zarr}: set image.ome_zarr to its version, or choose another output folder"
        )
    return zarr.open_group(path, mode="r+")


def is_damaged_root(path: Path, slide_path: Path) -> bool:
    """Whether slidesam made a store for this slide, by its own note, and the metadata doesn't say so any more."""
    note = read_json(_note(path))
    if note is None or note.get("source") != str(slide_path) or not path.is_dir():
        return False
    group = read_group(path)
    return group is None or group.attributes.get(_OWNER) != {"source": str(slide_path)}


def _note(path: Path) -> Path:
    return RunPaths.of_store(path, IMAGE).store_note


def recreate_root(path: Path, image: ImageSettings, slide_path: Path) -> None:
    """Write the metadata of a store's root again, without an image, where it is damaged; arrays and labels stay."""
    for name in GROUP_FILES:
        (path / name).unlink(missing_ok=True)
    write_group(path, FORMATS[image.ome_zarr], {_OWNER: {"source": str(slide_path)}})


def write_image_metadata(
    group: zarr.Group,
    name: str,
    levels: Sequence[LevelPlace],
    mpp: Pixel | None,
    omero: dict[str, Any] | None,
    origin: Pixel = (0.0, 0.0),
) -> None:
    """Write the metadata that makes a group's arrays 0..n an image pyramid.

    Args:
        group: The image group.
        name: Name of the image.
        levels: Where their pixels lie.
        mpp: Height and width of a pixel at level 0 in µm, or None where unknown.
        omero: Channel names, colours and display windows.
        origin: See `level_transformations`.
    """
    attributes: dict[str, Any] = {"multiscales": [make_multiscale(group, name, levels, mpp, origin)]}
    if omero is not None:
        attributes["omero"] = omero
    set_ome_attributes(group, attributes)


def remove_image(root: zarr.Group) -> None:
    """Remove the metadata that makes the store an image, then its levels."""
    remove_ome_attributes(root, ("multiscales", "omero"))
    for path in group_folder(root).iterdir():
        if path.name.isdigit():
            shutil.rmtree(path, ignore_errors=True)


def create_label(
    root: zarr.Group,
    label: str,
    shape: tuple[int, int],
    group_shape: tuple[int, int],
    dtype: np.dtype[Any],
    image: ImageSettings,
) -> None:
    """Create the empty arrays of a label pyramid; first remove an older label image of that name.

    Args:
        root: The store.
        label: Name of the label image.
        shape: Height and width of the slide.
        group_shape: Height and width of a group of blocks, the shard of level 0. Shards halve with each level that a group's
            task writes; the levels after those have shards of full size again.
        dtype: Type of the ids.
        image: Codec and chunks.
    """
    remove_label(root, label)
    with _list_locked(root, label):
        if read_group(group_folder(root) / "labels") is None:
            _write_list(root, listed_labels(root))
    write_group(group_folder(root) / "labels" / label, root.metadata.zarr_format, {})
    write_label_arrays(group_folder(root) / "labels" / label, shape, group_shape, dtype, image)


def write_label_arrays(
    folder: Path, shape: tuple[int, int], group_shape: tuple[int, int], dtype: np.dtype[Any], image: ImageSettings
) -> None:
    """Write the metadata of a label pyramid's arrays, as far as it isn't there; what they hold stays.

    Args:
        folder: The label image.
        shape: See `create_label`.
        group_shape: See `create_label`.
        dtype: See `create_label`.
        image: See `create_label`.
    """
    shapes, plans = level_shapes(shape), []
    n_written = group_levels(group_shape, len(shapes))
    for level, (height, width) in enumerate(shapes):
        halvings = level if level < n_written else 0
        shard = (group_shape[0] >> halvings, group_shape[1] >> halvings)
        plans.append(ArrayPlan(str(level), (1, 1, 1, height, width), dtype, shard, shuffle="shuffle"))
    write_array_metadata(folder, plans, image)


def remove_label(root: zarr.Group, label: str) -> None:
    """Remove a label image from the list, then its metadata and arrays."""
    unlist_label(root, label)
    folder = group_folder(root) / "labels" / label
    for name in GROUP_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def unlist_label(root: zarr.Group, label: str) -> None:
    """Remove a label image from the list: it isn't finished any more."""
    # No other run lists this label.
    if label in listed_labels(root):
        with _list_locked(root, label):
            _write_list(root, [name for name in listed_labels(root) if name != label])


def repair_list(root: zarr.Group, label: str) -> bool:
    """Write the list of labels again if it is damaged; return whether it was."""
    folder = group_folder(root) / "labels"
    if not folder.is_dir() or read_group(folder) is not None:
        return False
    with _list_locked(root, label):
        _write_list(root, listed_labels(root))
    return True


def finish_label(
    root: zarr.Group,
    label: str,
    mpp: Pixel | None,
    origin: Pixel = (0.0, 0.0),
    objects: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> None:
    """Write the metadata that makes the arrays a label image, and last its name in the store's list of labels.

    Args:
        root: The store.
        label: Name of the label image.
        mpp: See `write_image_metadata`.
        origin: See `level_transformations`.
        objects: `colors` and `properties` of NGFF's `image-label`, an entry per object.

    Raises:
        DamagedError: The group's metadata is damaged.
    """
    from ome_zarr_models.common.image_label_types import Color, Source

    folder = group_folder(root) / "labels" / label
    if read_group(folder) is None:
        raise DamagedError(f"{folder} has damaged metadata", "run the same command again")
    group = zarr.open_group(folder, mode="r+")
    n_levels = sum(1 for _ in group.array_keys())
    levels = [place_samples((2.0**level, 2.0**level)) for level in range(n_levels)]
    version = {3: "0.5", 2: "0.4"}[group.metadata.zarr_format]
    image_label: dict[str, Any] = {
        "colors": [Color(**{"label-value": 0, "rgba": (0, 0, 0, 0)}).model_dump(by_alias=True)],
        "source": Source().model_dump(),
    }
    if objects:
        image_label["colors"] += objects["colors"]
        image_label["properties"] = objects["properties"]
    if version == "0.4":
        image_label["version"] = version
    multiscale = make_multiscale(group, label, levels, mpp, origin)
    set_ome_attributes(group, {"multiscales": [multiscale], "image-label": image_label})
    with _list_locked(root, label):
        _write_list(root, sorted({*listed_labels(root), label}))


def is_finished(root_path: Path, label: str) -> bool:
    """Tell whether the store lists this label image."""
    return read_group(root_path) is not None and label in _read_list(root_path / "labels")


def list_own_labels(root_path: Path) -> list[str]:
    """List the names of a store's finished label images; none if slidesam didn't make the store."""
    group = read_group(root_path)
    is_own = group is not None and isinstance(group.attributes.get(_OWNER), dict)
    return _read_list(root_path / "labels") if is_own else []


def listed_labels(root: zarr.Group) -> list[str]:
    """List the names of the store's finished label images."""
    return _read_list(group_folder(root) / "labels")


def _read_list(folder: Path) -> list[str]:
    """Read the list of label images; where it is damaged, those whose own metadata is whole count as listed."""
    if not folder.is_dir():
        return []
    group = read_group(folder)
    if group is None:
        return sorted(path.name for path in folder.iterdir() if _is_described(path))
    names = group.attributes.get("ome", group.attributes).get("labels", [])
    return [name for name in names if isinstance(name, str)]


def _is_described(label_image: Path) -> bool:
    """Whether a label image has the metadata that is written after its pixels."""
    group = read_group(label_image)
    return group is not None and "image-label" in group.attributes.get("ome", group.attributes)


@contextmanager
def _list_locked(root: zarr.Group, label: str) -> Iterator[None]:
    """Let one run at a time read and write the list of labels: of two at once, one would undo the other's entry."""
    store = group_folder(root)
    lock = RunPaths.of_store(store, label).list_lock
    with locked(lock, f"the run of {label}", target=f"the list of labels in {store}", wait=_LIST_TIMEOUT):
        yield


def _write_list(root: zarr.Group, names: list[str]) -> None:
    """Write the list of labels, whatever is there."""
    folder, values = group_folder(root) / "labels", {"labels": names}
    is_v2 = root.metadata.zarr_format == 2
    write_group(folder, root.metadata.zarr_format, values if is_v2 else {"ome": {"version": "0.5", **values}})


def _end_zarrs_thread() -> None:
    """Stop zarr's event loop and wait for its thread; zarr closes the loop afterwards.

    At the end of a process zarr waits 0.2 s for its thread, too short on a busy machine, and then closes the loop that the
    thread still uses: a traceback appears when a user only pressed Ctrl-C.
    """
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is None or thread is None or not thread.is_alive():
        return
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_THREAD_TIMEOUT)


# The function registered last is called first: zarr registered its own when it was imported above.
atexit.register(_end_zarrs_thread)
