"""Owns the inspection of Zarr folders: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3), older versions, and output of bioformats2raw.

1. `metadata` finds the images and checks their metadata; `choice` chooses the slide among them.
2. `_check_array` refuses an array whose sizes can't be true.
3. `_name_channels` names the channels.

Three channels are red, green and blue if they have these names. Otherwise `METADATA.ome.xml` decides, if it exists: three samples
per pixel mean yes. Otherwise they are if they are 8 bit, have no names, and are coloured red, green and blue.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slidesam.tasks.errors import SlideError, in_one_line
from slidesam.tasks.slides.choice import choose_image
from slidesam.tasks.slides.ome_xml import OmeImage, read_ome_xml
from slidesam.tasks.slides.source import (
    RGB_NAMES,
    Display,
    ImageChoice,
    Shape5,
    SourceFacts,
    are_rgb,
    check_chunk,
    check_dtype,
    check_level,
    credible_window,
    errors_as_slide_errors,
    one_line_name,
)
from slidesam.tasks.slides.xml_text import decode_xml
from slidesam.tasks.slides.zarr.images import find_number, summarise_images
from slidesam.tasks.slides.zarr.metadata import (
    MAX_METADATA_BYTES,
    METADATA_FILES,
    Attributes,
    Multiscales,
    ZarrImage,
    find_images,
    read_json_object,
)
from slidesam.tasks.slides.zarr.source import ZarrLevel, ZarrSpec, open_array

MAX_COUNTED_CHUNKS = 10_000
MIN_CHUNK_PIXELS, MAX_TINY_CHUNKS = 1024, 2**16  # smaller chunks are accepted if they are few
MAX_CHUNKS_PER_SHARD = 2**22  # the index of a shard, 16 bytes per chunk, is read as a whole
_NO_NAME = re.compile(r"(channel|ch|c)?[ _:#-]*\d*", re.IGNORECASE)
_COLOUR = re.compile(r"[0-9A-F]{6}")
_RGB_COLOURS = ("FF0000", "00FF00", "0000FF")


def inspect_zarr(path: Path, choice: ImageChoice) -> tuple[SourceFacts, ZarrSpec]:
    """Inspect one image of a Zarr folder; no pixel is read.

    Args:
        path: The folder: an image, a store of several series, or a folder that holds one store.
        choice: Which of its images, and how to read it.

    Raises:
        SlideError: It can't be read, or declares what can't be true.
        SettingsError: It has no image of that number.
    """
    file = one_line_name(path)
    with errors_as_slide_errors(file, "isn't an OME-Zarr that can be read", "get it again or leave it out"):
        images = find_images(path, file)
        number, remarks = choose_image(summarise_images(images, _ome_file(images[0])), choice.series, file)
        image = images[number]
        multiscales = Multiscales(file, image)
        folders = [image.folder / dataset for dataset in multiscales.datasets]
        metadata = [_read_array(file, number, folder) for number, folder in enumerate(folders)]
        arrays = [
            _check_array(file, number, open_array(folder, values), multiscales.axes)
            for number, (folder, values) in enumerate(zip(folders, metadata, strict=True))
        ]
        shapes = [_tczyx(multiscales.axes, array.shape) for array in arrays]
        levels = tuple(
            ZarrLevel(folder=folder, shape=shape, metadata=values)
            for folder, shape, values in zip(folders, shapes, metadata, strict=True)
        )
        _check_levels(file, shapes, arrays)
        facts = _facts(file, image, multiscales, arrays)
        facts = replace(facts, series=number, warnings=(*remarks, *facts.warnings))
        spec = ZarrSpec(axes=multiscales.axes, dtype=facts.dtype.name, levels=levels, files=facts.identity_files)
        return facts, spec


def _check_levels(file: str, shapes: Sequence[Shape5], arrays: Sequence[Any]) -> None:
    for number, (finer, coarser) in enumerate(itertools.pairwise(shapes), start=1):
        fits = finer[:2] == coarser[:2] and all(b <= a for a, b in zip(finer, coarser, strict=True))
        if not fits or finer[3:] == coarser[3:]:
            raise SlideError(
                f"{file}: level {number} of {coarser} isn't a smaller copy of level {number - 1} of {finer} "
                "(t, c, z, y, x); the file is damaged or mislabelled, write it again"
            )
    if len({array.dtype for array in arrays}) > 1:
        raise SlideError(f"{file}: its levels differ in pixel type; the file is mislabelled, write it again")


def _facts(file: str, image: ZarrImage, multiscales: Multiscales, arrays: Sequence[Any]) -> SourceFacts:
    shapes = tuple(_tczyx(multiscales.axes, array.shape) for array in arrays)
    xml = _ome_file(image)
    ome = None if xml is None else _ome_image(xml, image, shapes[0])
    pixel_size, warnings = multiscales.pixel_size(ome)
    entries = _channel_entries(image.attributes, shapes[0][1])
    names, is_rgb = _name_channels(entries, arrays[0].dtype, ome)
    folders = [image.root, image.folder, *(image.folder / dataset for dataset in multiscales.datasets)]
    files = [folder / name for folder in folders for name in METADATA_FILES] + ([] if xml is None else [xml])
    missing = _count_missing_chunks(arrays[0])
    if missing:
        finding = f"{missing} of {arrays[0].nchunks} chunks of level 0 aren't there and read as {arrays[0].fill_value}"
        warnings.append(f"{finding}; check that the copy is complete")
    return SourceFacts(
        format=image.layout,
        series=image.number,
        n_series=image.count,
        dtype=check_dtype(file, arrays[0].dtype),
        shapes=shapes,
        chunks=tuple(_tczyx(multiscales.axes, array.chunks) for array in arrays),
        pixel_size=pixel_size,
        channel_names=names,
        is_rgb=is_rgb,
        warnings=tuple(warnings),
        identity_files=tuple(dict.fromkeys(name for name in files if name.is_file())),
        display=tuple(_display(entry) for entry in entries),
        missing_chunks=missing,
    )


def _count_missing_chunks(array: Any) -> int:
    """Count missing chunks, which read as empty without an error.

    Chunks in shards aren't counted, because the shards' indices would have to be read, nor too many chunks.
    """
    if array.shards is not None or array.nchunks > MAX_COUNTED_CHUNKS:
        return 0
    return int(array.nchunks - array.nchunks_initialized)


def _tczyx(axes: str, sizes: Sequence[int]) -> Shape5:
    t, c, z, y, x = (int(sizes[axes.index(axis)]) if axis in axes else 1 for axis in "tczyx")
    return t, c, z, y, x


def _read_array(file: str, number: int, folder: Path) -> dict[str, Any]:
    """Read the metadata of a level's array.

    Raises:
        SlideError: It is missing.
        ValueError: Its metadata aren't JSON.
    """
    metadata = read_json_object(folder / "zarr.json") or read_json_object(folder / ".zarray")
    if metadata is None:
        raise SlideError(f"{file}: level {number} (folder {folder.name!r}) isn't there; copy the whole folder again")
    return {**metadata, "attributes": {}}


def _check_array(file: str, number: int, array: Any, axes: str) -> Any:
    """Refuse an array whose sizes can't be true.

    Raises:
        SlideError: They can't; the message says which.
    """
    if array.ndim != len(axes):
        raise SlideError(
            f"{file}: level {number} has {array.ndim} axes where its metadata list {len(axes)}; write it again"
        )
    check_level(file, number, _tczyx(axes, array.shape))
    dtype = check_dtype(file, array.dtype)
    if min(array.chunks) < 1:
        raise SlideError(f"{file}: level {number} has chunks of {array.chunks}; the file is damaged, write it again")
    check_chunk(file, number, "chunk", array.chunks, dtype.itemsize)
    (*_, height, width), (*_, rows, columns) = (_tczyx(axes, sizes) for sizes in (array.shape, array.chunks))
    if rows * columns < MIN_CHUNK_PIXELS and height * width > MAX_TINY_CHUNKS * rows * columns:
        raise SlideError(
            f"{file}: level {number} is stored in chunks of {rows} × {columns} pixels, far too small to read; rechunk it"
        )
    if array.shards is not None and math.prod(array.shards) // math.prod(array.chunks) > MAX_CHUNKS_PER_SHARD:
        raise SlideError(f"{file}: level {number} has shards of {array.shards}, too many chunks each; write it again")
    return array


def _ome_file(image: ZarrImage) -> Path | None:
    """Find bioformats2raw's METADATA.ome.xml, if it exists."""
    for folder in (image.root, image.root.parent):
        for path in (folder / "OME" / "METADATA.ome.xml", folder / "METADATA.ome.xml"):
            if path.is_file() and path.stat().st_size <= MAX_METADATA_BYTES:
                return path
    return None


def _ome_image(path: Path, image: ZarrImage, shape: Shape5) -> OmeImage | None:
    """Read what METADATA.ome.xml states about an image, if the size is the same."""
    try:
        images = read_ome_xml(decode_xml(path.read_bytes()), path.name).images
    except ValueError:
        return None
    number = find_number(image)
    entry = images[number] if number < len(images) else None
    return entry if entry is not None and entry.size == (shape[4], shape[3]) else None


def _channel_entries(attributes: Attributes, count: int) -> list[dict[str, Any]]:
    """Read the omero metadata of each channel; empty if their number differs."""
    omero = attributes.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    entries = [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []
    return entries if len(entries) == count else [{}] * count


def _display(entry: dict[str, Any]) -> Display:
    """Read colour and display window of a channel."""
    colour, window = str(entry.get("color", "")).upper().lstrip("#")[:6], entry.get("window")
    ends = (window.get("start"), window.get("end")) if isinstance(window, dict) else (None, None)
    return Display(colour if _COLOUR.fullmatch(colour) else None, credible_window(*ends))


def _name_channels(
    entries: list[dict[str, Any]], dtype: np.dtype[Any], ome: OmeImage | None
) -> tuple[tuple[str, ...], bool]:
    """Name the channels, and tell whether they are red, green and blue."""
    count = len(entries)
    names = [in_one_line(str(entry.get("label", "")), 80) for entry in entries]
    if ome is not None and len(ome.channel_names) == count:
        names = [
            name if not _NO_NAME.fullmatch(name) else ome_name or name
            for name, ome_name in zip(names, ome.channel_names, strict=True)
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
