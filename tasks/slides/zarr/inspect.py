"""Owns the inspection of Zarr folders: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3), older versions, and output of bioformats2raw.

1. `metadata` finds the images and checks their metadata; `choice` chooses the slide among them.
2. `levels` reads the levels, and refuses arrays whose sizes can't be true.
3. `_name_channels` names the channels.

Whether three channels are red, green and blue is decided by `bright_field`: by their names, by `METADATA.ome.xml` (three samples
per pixel mean yes), by their colours; and if all that leaves it open, by a few pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slidesam.tasks.errors import in_one_line
from slidesam.tasks.slides.bright_field import find_rgb, is_unnamed
from slidesam.tasks.slides.choice import choose_image
from slidesam.tasks.slides.ome_xml import OmeImage, read_ome_xml
from slidesam.tasks.slides.source import (
    Display,
    ImageChoice,
    Shape5,
    SourceFacts,
    check_dtype,
    credible_window,
    digest_missing,
    errors_as_slide_errors,
    one_line_name,
)
from slidesam.tasks.slides.xml_text import decode_xml
from slidesam.tasks.slides.zarr.images import find_number, summarise_images
from slidesam.tasks.slides.zarr.levels import CheckedLevel, check_levels, describe_missing, read_level
from slidesam.tasks.slides.zarr.metadata import (
    MAX_METADATA_BYTES,
    METADATA_FILES,
    Attributes,
    Multiscales,
    ZarrImage,
    find_images,
)
from slidesam.tasks.slides.zarr.source import ZarrSpec

_COLOUR = re.compile(r"[0-9A-F]{6}")


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
        levels = [
            read_level(file, level, folder, multiscales.axes, image.zarr_format) for level, folder in enumerate(folders)
        ]
        check_levels(file, levels)
        facts = _facts(file, image, multiscales, levels)
        facts = replace(facts, series=number, warnings=(*remarks, *facts.warnings))
        spec = ZarrSpec(
            axes=multiscales.axes,
            dtype=facts.dtype.name,
            levels=tuple(each.level for each in levels),
            files=facts.identity_files,
        )
        return facts, spec


def _facts(file: str, image: ZarrImage, multiscales: Multiscales, levels: Sequence[CheckedLevel]) -> SourceFacts:
    finest = levels[0]
    xml = _ome_file(image)
    ome, xml_remarks = (None, []) if xml is None else _ome_image(xml, image, finest.level.shape)
    pixel_size, size_remarks = multiscales.pixel_size(ome)
    missing, whole, missing_remarks = describe_missing(levels)
    entries = _channel_entries(image.attributes, finest.level.shape[1])
    names, is_rgb = _name_channels(entries, image.attributes.get("omero"), finest.array.dtype, ome)
    folders = [image.root, image.folder, *(image.folder / dataset for dataset in multiscales.datasets)]
    files = [folder / name for folder in folders for name in METADATA_FILES] + ([] if xml is None else [xml])
    name_remarks = dict.fromkeys(remark for level in levels for remark in level.remarks)
    remarks = [*multiscales.remarks, *size_remarks, *xml_remarks, *name_remarks]
    return SourceFacts(
        format=image.layout,
        series=image.number,
        n_series=image.count,
        dtype=check_dtype(file, finest.array.dtype),
        shapes=tuple(each.level.shape for each in levels),
        chunks=tuple(each.chunks for each in levels),
        pixel_size=pixel_size,
        origin=multiscales.origin(),
        channel_names=names,
        is_rgb=is_rgb,
        warnings=(*remarks, *missing_remarks),
        identity_files=tuple(dict.fromkeys(name for name in files if name.is_file())),
        display=tuple(_display(entry) for entry in entries),
        missing_chunks=missing,
        missing_digest=digest_missing(None if each.present is None else ~each.present for each in levels),
        can_have_gaps=any(each.present is None or each.array.shards is not None for each in levels),
        whole_levels=whole,
    )


def _ome_file(image: ZarrImage) -> Path | None:
    """Find bioformats2raw's METADATA.ome.xml, if it exists."""
    for folder in (image.root, image.root.parent):
        for path in (folder / "OME" / "METADATA.ome.xml", folder / "METADATA.ome.xml"):
            if path.is_file() and path.stat().st_size <= MAX_METADATA_BYTES:
                return path
    return None


def _ome_image(path: Path, image: ZarrImage, shape: Shape5) -> tuple[OmeImage | None, list[str]]:
    """Read what METADATA.ome.xml states about an image, if the size is the same, and remarks."""
    try:
        images = read_ome_xml(decode_xml(path.read_bytes()), path.name).images
    except ValueError:
        return None, [f"its {path.name} can't be parsed and isn't used"]
    number = find_number(image)
    entry = images[number] if number < len(images) else None
    if entry is None or entry.size == (shape[4], shape[3]):
        return entry, []
    return None, [
        f"its {path.name} describes an image of {entry.size[0]} × {entry.size[1]} px and the arrays hold one of "
        f"{shape[4]} × {shape[3]} px; the file isn't used"
    ]


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
    entries: list[dict[str, Any]], omero: Any, dtype: np.dtype[Any], ome: OmeImage | None
) -> tuple[tuple[str, ...], bool | None]:
    """Name the channels, and tell whether they are red, green and blue; none if the metadata leave that open."""
    count = len(entries)
    labels = [entry.get("label") for entry in entries]
    names = ["" if label is None else in_one_line(str(label), 80) for label in labels]
    if ome is not None and len(ome.channel_names) == count:
        names = [
            name if not is_unnamed(name) else ome_name or name
            for name, ome_name in zip(names, ome.channel_names, strict=True)
        ]
    colours = [_display(entry).colour for entry in entries]
    is_rgb = find_rgb(names, colours, dtype, () if ome is None else ome.samples)
    model = omero.get("rdefs", {}) if isinstance(omero, dict) else {}
    if is_rgb is None and isinstance(model, dict) and model.get("model") == "greyscale":
        is_rgb = False
    return tuple(name or f"channel {number}" for number, name in enumerate(names)), is_rgb
