"""Open what a result is compared with: a label image (TIFF, OME-Zarr, .npy), outlines (GeoJSON), or another result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.compare.outline_file import read_outline_file
from slidesam.tasks.compare.rasterize import draw_polygons
from slidesam.tasks.errors import OutputError, SettingsError, SlideError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import Labels
from slidesam.tasks.run.layout import STORE_SUFFIX, find_provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.source import TiffSpec
from slidesam.tasks.store.arrays import FAST
from slidesam.tasks.store.ome_zarr import is_finished
from slidesam.tasks.store.readers import read_checked

_OUTLINE_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")
_KINDS = "a label image (TIFF, OME-Zarr or .npy), outlines (.geojson, .geojson.gz) or a result (<name>.ome.zarr)"
# What is read at once has sides of at most this, in whole shards, or whole chunks of larger shards.
_TILE = 2048
# Two labels of 2³² - 1 are what an empty place looks like in the tables of `count_overlaps`.
_LARGEST = 2**32 - 2


def _do_nothing() -> None:
    """There is nothing to close."""


@dataclass(frozen=True)
class LabelSource:
    """A label image that is read by regions; several threads may read.

    Attributes:
        name: What it is called in tables.
        shape: Height and width in pixels.
        read: Returns the (y, x) labels of a region, C-contiguous.
        notes: What a person should know, a sentence each.
        close: Closes the files.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[Region], Labels]
    notes: tuple[str, ...] = ()
    close: Callable[[], None] = _do_nothing


def open_run_labels(run: Run) -> tuple[LabelSource, tuple[int, int]]:
    """Open the label image of a finished run.

    Returns:
        The labels, and the height and width of what is best read at once.

    Raises:
        OutputError: It isn't finished any more, or its metadata is damaged.
    """
    if not run.paths.label_image.is_dir() or not is_finished(run.store, run.label):
        what = f"{run.store} has no finished label image {run.label}"
        raise OutputError(what, "run `slidesam segment` again with the same settings")
    try:
        source, array = _open_zarr(run.paths.label_image)
    except SettingsError as error:
        cure = f"`slidesam verify {run.output} --repair` writes it again"
        raise OutputError(f"{run.paths.label_image} has damaged metadata", cure) from error
    height, width = (
        (unit := shard if shard <= _TILE else chunk) * max(1, _TILE // unit)
        for shard, chunk in zip((array.shards or array.chunks)[-2:], array.chunks[-2:], strict=True)
    )
    return LabelSource(f"{run.store.name} ({run.label})", source.shape, source.read), (height, width)


def is_own_store(path: Path) -> bool:
    """Whether a path is a store `<name>.ome.zarr` that slidesam made, with a record beside it, and no other label image."""
    path = path.absolute()
    is_store = path.is_dir() and path.name.endswith(STORE_SUFFIX)
    return is_store and bool(find_provenance(path.parent, path.name.removesuffix(STORE_SUFFIX)))


def open_truth(path: Path, shape: tuple[int, int]) -> LabelSource:
    """Open a label image, or outlines, by what the path is.

    Args:
        path: A TIFF, a `.npy`, a Zarr array or OME-Zarr label image, or GeoJSON.
        shape: Height and width of the slide's level 0.

    Raises:
        SettingsError: It isn't there, isn't one of these, can't be read, or has another size.
    """
    if not path.exists():
        raise SettingsError(f"{path} isn't there", f"give {_KINDS}")
    if path.is_dir():
        folder = path.absolute()
        if folder.parent.name == "labels" and not is_finished(folder.parents[1], folder.name):
            raise SettingsError(f"{path} isn't listed as finished in {folder.parent}", "finish the run that writes it")
        source = _open_zarr(path)[0]
    elif path.name.lower().endswith(_OUTLINE_SUFFIXES):
        source = _open_outlines(path, shape)
    else:
        source = _open_numpy(path) if path.suffix.lower() == ".npy" else _open_tiff(path)
    check_same_shape(source, shape)
    return source


def show_array(labels: NDArray[np.integer[Any]]) -> LabelSource:
    """Show an array in memory, (y, x), as a label image.

    Raises:
        SettingsError: It has other dimensions.
    """
    if labels.ndim != 2:
        raise SettingsError(f"an array of {labels.ndim} dimensions", "a label image has two, (y, x)")
    shape = (labels.shape[0], labels.shape[1])
    return LabelSource("array", shape, lambda region: as_labels(labels[region.slices], "the array"))


def check_same_shape(source: LabelSource, shape: tuple[int, int]) -> None:
    """Check that labels cover the slide's level 0.

    Raises:
        SettingsError: They have another size.
    """
    if source.shape == shape:
        return
    (height, width), (slide_height, slide_width) = source.shape, shape
    ratio = slide_height / max(height, 1)
    is_scaled = abs(ratio - slide_width / max(width, 1)) < 0.02 * ratio
    cure = (
        f"enlarge it {ratio:.3g} times without interpolation (each pixel a label), or compare at its own scale"
        if is_scaled
        else "compare label images of the same pixels: it is of another slide, cropped or turned"
    )
    raise SettingsError(
        f"{source.name} has {height} × {width} px (height × width), the result {slide_height} × {slide_width}", cure
    )


def as_labels(pixels: NDArray[Any], name: str) -> Labels:
    """Convert (y, x) values to labels.

    Raises:
        SettingsError: They are no whole numbers from 0 to 2³² - 2.
    """
    if pixels.dtype == np.bool_ or not np.issubdtype(pixels.dtype, np.integer):
        what = f"{name} holds {pixels.dtype}, no numbers of objects"
        raise SettingsError(what, "number the objects first (skimage.measure.label makes labels from a mask)")
    if pixels.size and (pixels.dtype.kind == "i" or pixels.dtype.itemsize >= 4):
        least, largest = int(pixels.min()), int(pixels.max())
        if least < 0 or largest > _LARGEST:
            what = f"{name} has labels from {least} to {largest}"
            raise SettingsError(
                what, "number its objects from 1 on, 0 is background (skimage.segmentation.relabel_sequential)"
            )
    return np.ascontiguousarray(pixels, np.uint32)


def _open_zarr(path: Path) -> tuple[LabelSource, zarr.Array[Any]]:
    """Open level 0 of an OME-Zarr label image, or an array whose other axes have length 1."""
    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Group):
            if (path / "labels").is_dir():
                raise ValueError("it is an image")
            attributes: Any = node.attrs.asdict()
            multiscales = attributes.get("ome", attributes)["multiscales"]
            path = path / str(multiscales[0]["datasets"][0]["path"])
        with zarr.config.set(FAST if node.metadata.zarr_format == 3 else {}):
            array = zarr.open_array(path, mode="r")
    except (ValueError, TypeError, KeyError, IndexError, FileNotFoundError) as error:
        inside = [
            folder for parent in (path / "labels", path) for folder in sorted(parent.glob("*")) if _is_group(folder)
        ]
        cure = f"give {inside[0]}" if inside else f"give {_KINDS}"
        raise SettingsError(f"{path} is no label image ({in_one_line(error, 160)})", cure) from error
    if array.ndim < 2 or any(size != 1 for size in array.shape[:-2]):
        sizes = " × ".join(map(str, array.shape))
        raise SettingsError(
            f"{path} has {sizes} values", "a label image of one plane is needed, (y, x) or (1, 1, 1, y, x)"
        )

    def read(region: Region) -> Labels:
        return as_labels(read_checked(array, region), path.name)

    return LabelSource(str(path), (array.shape[-2], array.shape[-1]), read), array


def _is_group(folder: Path) -> bool:
    return (folder / "zarr.json").exists() or (folder / ".zgroup").exists()


def _open_tiff(path: Path) -> LabelSource:
    try:
        slide = inspect_slide(path)
        if isinstance(slide.source, TiffSpec):
            # A tile that a sparse file leaves out is white in a slide.
            slide = slide.model_copy(update={"source": slide.source.over_zero()})
        if slide.size_c != 1 or slide.size_t != 1 or slide.size_z != 1:
            what = f"{path} has {slide.size_c} channels, {slide.size_t} time points and {slide.size_z} planes"
            raise SettingsError(what, "a label image of one channel is needed")
        reader = SlideReader(slide)
    except SlideError as error:
        raise SettingsError(f"{path} can't be read as a label image ({error})", f"give {_KINDS}") from error

    def read(region: Region) -> Labels:
        return as_labels(reader.read(region)[..., 0], path.name)

    return LabelSource(path.name, slide.shape, read, close=reader.close)


def _open_numpy(path: Path) -> LabelSource:
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(f"{path} can't be read ({in_one_line(error, 160)})", f"give {_KINDS}") from error
    source = show_array(labels)
    return LabelSource(path.name, source.shape, source.read)


def _open_outlines(path: Path, shape: tuple[int, int]) -> LabelSource:
    polygons = read_outline_file(path, shape)

    def read(region: Region) -> Labels:
        return draw_polygons(polygons, region)

    return LabelSource(path.name, shape, read, polygons.notes)
