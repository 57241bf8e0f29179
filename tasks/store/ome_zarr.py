"""Write the output store, an OME-Zarr image pyramid with label pyramids; an unfinished one never looks finished.

1. `create_store`     root group and image levels; the metadata that makes it an image
2. `create_label`     empty arrays of a label pyramid, without metadata: no reader takes them for a label image yet
3. `write_shards`     one region of one level, a whole number of shards, by one task
4. `finish_label`     metadata of the label image, then its name in the list of labels

Arrays are TCZYX. OME-Zarr 0.5 keeps its metadata under `ome` in Zarr v3 groups and shards its arrays; 0.4 is Zarr v2, where a
chunk is a file.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarrs  # noqa: F401 (zarr finds it once it is imported)
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core import sync

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.plan import group_levels, largest_divisor, level_shapes
from slidesam.tasks.run.layout import STORE_SUFFIX, RunPaths
from slidesam.tasks.run.lock import locked
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.slides.zarr.metadata import GROUP_FILES
from slidesam.tasks.store.multiscales import AXES, LevelPlace, Pixel, make_multiscale, place_samples

# The root attribute of stores that slidesam made, and so may write to.
_OWNER = "slidesam"
# Compression levels. With bits shuffled zstd's level 3 takes 1.4 times as long and saves 1 % (benchmarks/raw_limit.py --clevel).
CODECS: dict[Any, int] = {"zstd": 1, "lz4": 5}
FORMATS = {"0.5": 3, "0.4": 2}
# zarr's codecs in Rust. One thread: a worker computes one task at a time, and with more threads the bytes of shards differ.
FAST = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
# How these codecs report errors of the operating system.
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
# How long to wait for the end of zarr's thread, in seconds.
_THREAD_TIMEOUT = 10.0
# How long to wait for the list of labels, in seconds: others hold it for a moment only.
_LIST_TIMEOUT = 60.0


def chunk_side(shard: int, max_side: int) -> int:
    """Return the largest divisor of a shard's side that is at most `max_side`.

    Example:
        >>> chunk_side(2048, 512), chunk_side(720, 512)
        (512, 360)
    """
    return largest_divisor(shard, max_side)


def create_store(path: Path, image: ImageSettings, slide_path: Path) -> zarr.Group:
    """Open the output store, or create it.

    Raises:
        OutputError: The path holds something else, or a store of another OME-Zarr version.
    """
    if path.resolve() == slide_path.resolve():
        raise OutputError(f"{path.name} in the output folder is the slide itself: choose another output folder")
    zarr_format = FORMATS[image.ome_zarr]
    if path.exists():
        try:
            root = zarr.open_group(path, mode="r+")
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path} exists and is no Zarr group: move it away, or choose another output folder"
            ) from error
        owner: Any = root.attrs.get(_OWNER)
        if not isinstance(owner, dict):
            raise OutputError(f"{path} exists and wasn't made by slidesam: choose another output folder")
        if owner.get("source") != str(slide_path):
            raise OutputError(
                f"{path} holds results of {owner.get('source')}: choose another output folder for {slide_path}"
            )
        if root.metadata.zarr_format != zarr_format:
            raise OutputError(
                f"{path} is not OME-Zarr {image.ome_zarr}: set image.ome_zarr to its version, or choose another output folder"
            )
        return root
    return zarr.create_group(path, zarr_format=zarr_format, attributes={_OWNER: {"source": str(slide_path)}})  # type: ignore[arg-type]


def create_plane_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, int, int, int, int],
    dtype: np.dtype[Any],
    shard: tuple[int, int],
    image: ImageSettings,
    channels_per_shard: int | None = None,
    shuffle: Literal["shuffle", "bitshuffle"] = "bitshuffle",
) -> zarr.Array[Any]:
    """Create an empty TCZYX array; its shards have the given height and width and hold all channels. In v2, chunks are files.

    Args:
        group: The group to create it in.
        name: Its name, the level's number.
        shape: TCZYX.
        dtype: Type of the pixels.
        shard: Height and width of the region that one task writes.
        image: Codec and size of the chunks.
        channels_per_shard: How many channels one task writes; all by default.
        shuffle: How Blosc orders values: by bits for pixels; by bytes for ids, which is faster and smaller for them.
    """
    chunks = (1, 1, 1, chunk_side(shard[0], image.chunk_shape), chunk_side(shard[1], image.chunk_shape))
    channels = channels_per_shard or shape[1]
    if group.metadata.zarr_format == 2:
        codec = CODECS.get(image.codec)
        compressor = (
            None if codec is None else Blosc(cname=image.codec, clevel=codec, shuffle=getattr(Blosc, shuffle.upper()))
        )
        return group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, compressors=compressor, overwrite=True,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )  # fmt: skip
    level = CODECS.get(image.codec)
    compressors: list[BytesBytesCodec] = []
    if level is not None and image.codec != "none":
        compressors = [BloscCodec(cname=image.codec, clevel=level, shuffle=shuffle)]
    # Last, so that it vouches for the bytes as they lie on the disk.
    compressors.append(Crc32cCodec())
    return group.create_array(
        name, shape=shape, shards=(1, channels, 1, *shard), chunks=chunks, dtype=dtype, compressors=compressors,
        dimension_names=AXES, overwrite=True,
    )  # fmt: skip


def write_planes(array: zarr.Array[Any], region: Region, pixels: NDArray[Any], first: int = 0) -> None:
    """Write (c, y, x) pixels, from channel `first` on, to a region of a TCZYX array's first time point and focal plane."""
    array[(0, slice(first, first + pixels.shape[0]), 0, *region.slices)] = pixels


def open_levels(group: Path, ome_zarr: str) -> list[zarr.Array[Any]]:
    """Open the levels 0..n of an image or label image, to read them and to write whole shards.

    Reading and writing labels by zarrs takes half of zarr's time (`make stitching-speed`, rows "raw").
    """
    names = sorted((path.name for path in group.iterdir() if path.name.isdigit()), key=int)
    return [open_level(group / name, ome_zarr) for name in names]


def open_level(path: Path, ome_zarr: str) -> zarr.Array[Any]:
    """Open one level of an image or label image, as `open_levels` does."""
    with zarr.config.set(FAST if ome_zarr == "0.5" else {}):
        return zarr.open_array(path, mode="r+")


def write_shards(array: zarr.Array[Any], region: Region, pixels: NDArray[Any]) -> None:
    """Write pixels as whole shards of the first plane: (c, y, x), all channels, or (y, x) of the only one.

    Raises:
        OSError: The disk is full, or permission is missing.
    """
    # zarrs writes in place. Shards that a killed process left half-written can't be read, and zarrs reads the shards
    # at the far edge before it writes them.
    remove_shards(array, region)
    try:
        array[(0, slice(None) if pixels.ndim == 3 else 0, 0, *region.slices)] = pixels
    except RuntimeError as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def remove_shards(array: zarr.Array[Any], region: Region) -> None:
    """Remove the shards (in Zarr v2, the chunks) of a region of the first plane."""
    for path in shard_paths(array, region):
        path.unlink(missing_ok=True)


def shard_paths(array: zarr.Array[Any], region: Region) -> list[Path]:
    """List where the shards (in Zarr v2, the chunks) of a region of the first plane lie, whether they exist or not."""
    step_c, _, step_y, step_x = (array.shards or array.chunks)[1:]
    folder = Path(str(array.store_path.store).removeprefix("file://")) / array.path / ("c" if array.shards else "")
    return [
        folder / "0" / str(channel) / "0" / str(y) / str(x)
        for channel in range(-(-array.shape[1] // step_c))
        for y in range(region.y0 // step_y, -(-region.y1 // step_y))
        for x in range(region.x0 // step_x, -(-region.x1 // step_x))
    ]


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
    _set_attributes(group, attributes)


def remove_image(root: zarr.Group) -> None:
    """Remove the metadata that makes the store an image, then its levels."""
    for level in [name for name in root.array_keys() if name.isdigit()]:
        _remove_attributes(root, ("multiscales", "omero"))
        shutil.rmtree(_folder(root) / level, ignore_errors=True)


def create_label(
    root: zarr.Group,
    label: str,
    shape: tuple[int, int],
    group_shape: tuple[int, int],
    dtype: np.dtype[Any],
    image: ImageSettings,
) -> zarr.Group:
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
        group = root.require_group("labels").create_group(label)
    shapes = level_shapes(shape)
    n_written = group_levels(group_shape, len(shapes))
    for level, (height, width) in enumerate(shapes):
        halvings = level if level < n_written else 0
        shard = (group_shape[0] >> halvings, group_shape[1] >> halvings)
        create_plane_array(group, str(level), (1, 1, 1, height, width), dtype, shard, image, shuffle="shuffle")
    return group


def remove_label(root: zarr.Group, label: str) -> None:
    """Remove a label image from the list, then its metadata and arrays."""
    # No other run lists this label.
    if label in listed_labels(root):
        with _list_locked(root, label):
            _write_list(root, [name for name in listed_labels(root) if name != label])
    folder = _folder(root) / "labels" / label
    for name in GROUP_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def finish_label(root: zarr.Group, label: str, mpp: Pixel | None, origin: Pixel = (0.0, 0.0)) -> None:
    """Write the metadata that makes the arrays a label image, and last its name in the store's list of labels."""
    from ome_zarr_models.common.image_label_types import Color, Source

    group = root[f"labels/{label}"]
    assert isinstance(group, zarr.Group)
    n_levels = sum(1 for _ in group.array_keys())
    levels = [place_samples((2.0**level, 2.0**level)) for level in range(n_levels)]
    version = {3: "0.5", 2: "0.4"}[group.metadata.zarr_format]
    image_label: dict[str, Any] = {
        "colors": [Color(**{"label-value": 0, "rgba": (0, 0, 0, 0)}).model_dump(by_alias=True)],
        "source": Source().model_dump(),
    }
    if version == "0.4":
        image_label["version"] = version
    multiscale = make_multiscale(group, label, levels, mpp, origin)
    _set_attributes(group, {"multiscales": [multiscale], "image-label": image_label})
    with _list_locked(root, label):
        _write_list(root, sorted({*listed_labels(root), label}))


def is_finished(root_path: Path, label: str) -> bool:
    """Tell whether the store lists this label image."""
    try:
        return label in listed_labels(zarr.open_group(root_path, mode="r"))
    except (OSError, ValueError):
        return False


def listed_labels(root: zarr.Group) -> list[str]:
    """List the names of the store's finished label images."""
    if "labels" not in root:
        return []
    attributes: dict[str, Any] = root["labels"].attrs.asdict()
    return list(attributes.get("labels", attributes.get("ome", {}).get("labels", [])))


@contextmanager
def _list_locked(root: zarr.Group, label: str) -> Iterator[None]:
    """Let one run at a time read and write the list of labels: of two at once, one would undo the other's entry."""
    store = _folder(root)
    lock = RunPaths(store.parent, store.name.removesuffix(STORE_SUFFIX), label).list_lock
    with locked(lock, f"the run of {label}", target=f"the list of labels in {store}", wait=_LIST_TIMEOUT):
        yield


def _write_list(root: zarr.Group, names: list[str]) -> None:
    """Write the list of labels."""
    labels = root["labels"]
    assert isinstance(labels, zarr.Group)
    _set_attributes(labels, {"labels": names})


def _set_attributes(group: zarr.Group, values: dict[str, Any]) -> None:
    """Set OME attributes: at the top in Zarr v2, under `ome` in v3."""
    if group.metadata.zarr_format == 2:
        group.attrs.update(values)
        return
    attributes: dict[str, Any] = group.attrs.asdict()
    group.attrs["ome"] = {**attributes.get("ome", {}), "version": "0.5", **values}


def _remove_attributes(group: zarr.Group, names: Sequence[str]) -> None:
    """Remove OME attributes."""
    attributes: dict[str, Any] = group.attrs.asdict()
    if group.metadata.zarr_format == 2:
        group.attrs.put({key: value for key, value in attributes.items() if key not in names})
        return
    group.attrs["ome"] = {key: value for key, value in attributes.get("ome", {}).items() if key not in names}


def _folder(group: zarr.Group) -> Path:
    """Return the folder of a group of a local store."""
    return Path(str(group.store_path.store).removeprefix("file://")) / group.path


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
