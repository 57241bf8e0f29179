"""Slides that are Zarr folders: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3), older ones, and what bioformats2raw writes.

1. `slide_zarr_metadata` finds the image that a person pointed at and checks its metadata.
2. `_open_array` opens a level's array and refuses what can't be true; Zarr itself reads the chunks.
3. `_channels` names the channels.

Whether three channels are red, green and blue: yes if they are called so; else, where `METADATA.ome.xml` is there, if it says
three samples per pixel; else if they are 8 bit, without names of their own, and coloured red, green and blue.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from slidesam.tasks.errors import SlideError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.ome_xml import OmeImage, read_ome_xml
from slidesam.tasks.slides.source import (
    MAX_CHUNK_BYTES,
    RGB_NAMES,
    Display,
    Shape5,
    SourceFacts,
    TczyxView,
    are_rgb,
    check_chunk,
    check_dtype,
    check_level,
    credible_window,
    errors_as_slide_errors,
    one_line_name,
)
from slidesam.tasks.slides.zarr.metadata import (
    MAX_METADATA_BYTES,
    METADATA_FILES,
    Attributes,
    ImageFolder,
    Multiscales,
    find_image,
)

MAX_COUNTED_CHUNKS = 10_000
MIN_CHUNK_PIXELS, MAX_TINY_CHUNKS = 1024, 2**16  # smaller chunks are well where there are few of them
MAX_CHUNKS_PER_SHARD = 2**22  # their index, of 16 bytes each, is read as a whole
_NO_NAME = re.compile(r"(channel|ch|c)?[ _:#-]*\d*", re.IGNORECASE)
_COLOUR = re.compile(r"[0-9A-F]{6}")
_RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
_WARNINGS = threading.Lock()


class ZarrSource:
    """An open Zarr folder, one image of it.

    Args:
        path: The folder: an image, a store of several series, or a folder that holds one store.
        series: Number of the image in it.

    Raises:
        SlideError: It can't be read, or says what can't be true.
        SettingsError: It has no image of that number.
    """

    def __init__(self, path: Path, series: int) -> None:
        self._file = one_line_name(path)
        with errors_as_slide_errors(self._file, "isn't an OME-Zarr that can be read", "get it again or leave it out"):
            image = find_image(path, self._file, series)
            multiscales = Multiscales(self._file, image)
            self._arrays = [
                _open_array(self._file, number, image.folder / dataset, multiscales)
                for number, dataset in enumerate(multiscales.datasets)
            ]
            self._axes = multiscales.axes
            self._check_levels()
            self.facts = self._facts(image, multiscales)

    def view(self, level: int) -> TczyxView:
        """Lazy pixels of one level."""
        array = self._arrays[level]

        def fetch(ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
            return _fetch(array, self._axes, ts, cs, zs, region).astype(self.facts.dtype, copy=False)

        chunks = _tczyx(self._axes, array.chunks)
        return TczyxView(self._file, level, _tczyx(self._axes, array.shape), self.facts.dtype, chunks, fetch)

    def remarks(self) -> list[str]:
        """Whether chunks of the finest level are missing: they would read as empty, without an error."""
        array, missing = self._arrays[0], self.missing_chunks()
        many = f"{missing} of {array.nchunks} chunks of level 0 aren't there and read as {array.fill_value}"
        return [f"{many}; see that the copy is complete"] if missing else []

    def missing_chunks(self) -> int:
        """Number of chunks of the finest level that aren't there.

        Not asked of shards, whose index would have to be read, nor where there are too many chunks to count.
        """
        return self._missing

    @cached_property
    def _missing(self) -> int:
        array = self._arrays[0]
        if array.shards is not None or array.nchunks > MAX_COUNTED_CHUNKS:
            return 0
        return int(array.nchunks - array.nchunks_initialized)

    def close(self) -> None:
        """Nothing to give back: Zarr opens files as it reads them."""

    def _check_levels(self) -> None:
        shapes = [_tczyx(self._axes, array.shape) for array in self._arrays]
        for number, (finer, coarser) in enumerate(itertools.pairwise(shapes), start=1):
            fits = finer[:2] == coarser[:2] and all(b <= a for a, b in zip(finer, coarser, strict=True))
            if not fits or finer[3:] == coarser[3:]:
                raise SlideError(
                    f"{self._file}: level {number} of {coarser} isn't a smaller copy of level {number - 1} of {finer} "
                    "(t, c, z, y, x); the file is damaged or mislabelled, write it again"
                )
        if len({array.dtype for array in self._arrays}) > 1:
            raise SlideError(f"{self._file}: its levels differ in pixel type; the file is mislabelled, write it again")

    def _facts(self, image: ImageFolder, multiscales: Multiscales) -> SourceFacts:
        shapes = tuple(_tczyx(self._axes, array.shape) for array in self._arrays)
        xml = _ome_file(image)
        ome = None if xml is None else _ome_image(xml, image, shapes[0])
        mpp, warnings = multiscales.mpp(ome)
        dtype = check_dtype(self._file, self._arrays[0].dtype)
        entries = _channel_entries(image.attributes, shapes[0][1])
        names, is_rgb = _channels(entries, self._arrays[0].dtype, ome)
        folders = [image.root, image.folder, *(image.folder / dataset for dataset in multiscales.datasets)]
        files = [folder / name for folder in folders for name in METADATA_FILES] + ([] if xml is None else [xml])
        return SourceFacts(
            format=image.layout,
            n_series=image.count,
            dtype=dtype,
            shapes=shapes,
            mpp=mpp,
            channel_names=names,
            is_rgb=is_rgb,
            warnings=tuple(warnings),
            identity_files=tuple(dict.fromkeys(file for file in files if file.is_file())),
            display=tuple(_display(entry) for entry in entries),
        )


def _fetch(array: Any, axes: str, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
    channels = sorted(set(cs))
    contiguous = channels == list(range(channels[0], channels[-1] + 1))
    wanted: dict[str, Any] = {
        "t": slice(ts.start, ts.stop, ts.step),
        "c": slice(channels[0], channels[-1] + 1) if contiguous else channels,
        "z": slice(zs.start, zs.stop, zs.step),
        "y": slice(region.y0, region.y1),
        "x": slice(region.x0, region.x1),
    }
    selection = tuple(wanted[axis] for axis in axes)
    pixels: NDArray[Any] = np.asarray(array[selection] if contiguous or "c" not in axes else array.oindex[selection])
    present = [axis for axis in "tczyx" if axis in axes]
    pixels = pixels.transpose([axes.index(axis) for axis in present])
    pixels = pixels[tuple(slice(None) if axis in axes else None for axis in "tczyx")]
    return pixels if list(cs) == channels else pixels[:, [channels.index(channel) for channel in cs]]


def _tczyx(axes: str, sizes: Sequence[int]) -> Shape5:
    t, c, z, y, x = (int(sizes[axes.index(axis)]) if axis in axes else 1 for axis in "tczyx")
    return t, c, z, y, x


class _BloscChecked(WrapperStore[LocalStore]):
    """Store of an array compressed with Blosc, whose decoder reads past the end of a chunk that was cut short."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        buffer = await super().get(key, prototype, byte_range)
        if buffer is None or byte_range is not None or key.rpartition("/")[2] in METADATA_FILES:
            return buffer
        header = buffer[:16].to_bytes()
        decoded, encoded = int.from_bytes(header[4:8], "little"), int.from_bytes(header[12:16], "little")
        if len(header) < 16 or encoded > len(buffer) or decoded > MAX_CHUNK_BYTES:
            raise ValueError(f"chunk {key} has {len(buffer)} bytes where {encoded} are due")
        return buffer


def _open_array(file: str, number: int, folder: Path, multiscales: Multiscales) -> Any:
    """A level's array, checked.

    Raises:
        SlideError: It isn't there, or declares what can't be true.
    """
    if not (folder / ".zarray").is_file() and not (folder / "zarr.json").is_file():
        raise SlideError(f"{file}: level {number} (folder {folder.name!r}) isn't there; copy the whole folder again")
    with _WARNINGS, warnings.catch_warnings():
        # Old writers' slips, such as an empty list of filters, which change nothing.
        warnings.simplefilter("ignore")
        array = zarr.open_array(store=folder, mode="r")
        if array.shards is None and array.compressors and "blosc" in type(array.compressors[-1]).__name__.lower():
            array = zarr.open_array(store=_BloscChecked(LocalStore(folder, read_only=True)), mode="r")
    if array.ndim != len(multiscales.axes):
        raise SlideError(
            f"{file}: level {number} has {array.ndim} axes where its metadata list {len(multiscales.axes)}; write it again"
        )
    check_level(file, number, _tczyx(multiscales.axes, array.shape))
    dtype = check_dtype(file, array.dtype)
    if min(array.chunks) < 1:
        raise SlideError(f"{file}: level {number} has chunks of {array.chunks}; the file is damaged, write it again")
    check_chunk(file, number, "chunk", array.chunks, dtype.itemsize)
    (*_, height, width), (*_, rows, columns) = (
        _tczyx(multiscales.axes, sizes) for sizes in (array.shape, array.chunks)
    )
    if rows * columns < MIN_CHUNK_PIXELS and height * width > MAX_TINY_CHUNKS * rows * columns:
        raise SlideError(
            f"{file}: level {number} is stored in chunks of {rows} × {columns} pixels, far too small to read; rechunk it"
        )
    if array.shards is not None and math.prod(array.shards) // math.prod(array.chunks) > MAX_CHUNKS_PER_SHARD:
        raise SlideError(f"{file}: level {number} has shards of {array.shards}, too many chunks each; write it again")
    return array


def _ome_file(image: ImageFolder) -> Path | None:
    """bioformats2raw's METADATA.ome.xml, if it is there."""
    for folder in (image.root, image.root.parent):
        for path in (folder / "OME" / "METADATA.ome.xml", folder / "METADATA.ome.xml"):
            if path.is_file() and path.stat().st_size <= MAX_METADATA_BYTES:
                return path
    return None


def _ome_image(path: Path, image: ImageFolder, shape: Shape5) -> OmeImage | None:
    """What METADATA.ome.xml says of an image, if it is of the same size."""
    try:
        images = read_ome_xml(path.read_text("utf-8", "replace"), path.name).images
    except ValueError:
        return None
    number = int(image.folder.name) if image.folder.name.isdecimal() else image.number
    found = images[number] if number < len(images) else None
    return found if found is not None and found.size == (shape[4], shape[3]) else None


def _channel_entries(attributes: Attributes, count: int) -> list[dict[str, Any]]:
    """What the omero metadata say of each channel, empty where they don't fit."""
    omero = attributes.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    entries = [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []
    return entries if len(entries) == count else [{}] * count


def _display(entry: dict[str, Any]) -> Display:
    """Colour and display window of a channel."""
    colour, window = str(entry.get("color", "")).upper().lstrip("#")[:6], entry.get("window")
    ends = (window.get("start"), window.get("end")) if isinstance(window, dict) else (None, None)
    return Display(colour if _COLOUR.fullmatch(colour) else None, credible_window(*ends))


def _channels(
    entries: list[dict[str, Any]], dtype: np.dtype[Any], ome: OmeImage | None
) -> tuple[tuple[str, ...], bool]:
    """Names of the channels, and whether they are red, green and blue."""
    count = len(entries)
    names = [in_one_line(str(entry.get("label", "")), 80) for entry in entries]
    if ome is not None and len(ome.channel_names) == count:
        names = [
            name if not _NO_NAME.fullmatch(name) else known or name
            for name, known in zip(names, ome.channel_names, strict=True)
        ]
    colours = tuple(str(entry.get("color", "")).upper().lstrip("#")[:6] for entry in entries)
    if are_rgb(names):
        is_rgb = True
    elif count != 3 or dtype != np.uint8:
        is_rgb = False
    elif ome is not None and ome.samples:
        is_rgb = ome.samples == (3,)
    else:
        is_rgb = colours == _RGB_COLOURS and all(_NO_NAME.fullmatch(name) for name in names)
    if is_rgb:
        return RGB_NAMES, True
    return tuple(name or f"channel {number}" for number, name in enumerate(names)), False
