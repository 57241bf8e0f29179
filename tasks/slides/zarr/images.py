"""Owns the description of the images in one Zarr store, from which the slide among them is chosen. No array is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slidesam.tasks.slides.choice import ImageInFile
from slidesam.tasks.slides.ome_xml import OmeImage, read_ome_xml
from slidesam.tasks.slides.xml_text import decode_xml
from slidesam.tasks.slides.zarr.metadata import ZarrImage, read_json_object


def summarise_images(images: Sequence[ZarrImage], ome_file: Path | None) -> list[ImageInFile]:
    """Describe images: their names, the size of level 0, the number of levels.

    Args:
        images: Of one store, in order.
        ome_file: bioformats2raw's METADATA.ome.xml, which has the names that scanners gave.

    Raises:
        ValueError: A metadata file isn't JSON.
    """
    if len(images) == 1:
        return [ImageInFile("", (0, 0), 1)]  # there is no choice
    ome = _read_ome_images(ome_file)
    return [_summarise(image, ome) for image in images]


def _read_ome_images(path: Path | None) -> tuple[OmeImage, ...]:
    try:
        return () if path is None else read_ome_xml(decode_xml(path.read_bytes()), path.name).images
    except ValueError:
        return ()


def _summarise(image: ZarrImage, ome: Sequence[OmeImage]) -> ImageInFile:
    entries: Any = image.attributes.get("multiscales")
    entry = entries[0] if isinstance(entries, list) and isinstance(entries[0], dict) else {}
    number = find_number(image)
    names = [ome[number].name if number < len(ome) else "", str(entry.get("name") or "")]
    datasets = entry.get("datasets")
    paths = [level.get("path") for level in datasets if isinstance(level, dict)] if isinstance(datasets, list) else []
    shape = _read_shape(image, paths[0]) if paths and isinstance(paths[0], str) else (0, 0)
    return ImageInFile(" ".join(" ".join(names).split()), shape, len(paths), folder=image.folder.name)


def find_number(image: ZarrImage) -> int:
    """Return the number that an image has in METADATA.ome.xml."""
    return int(image.folder.name) if image.folder.name.isdecimal() else image.number


def _read_shape(image: ZarrImage, dataset: str) -> tuple[int, int]:
    """Read height and width of an array, which are its last axes; (0, 0) if it isn't there."""
    folder = image.folder / dataset
    metadata = read_json_object(folder / "zarr.json") or read_json_object(folder / ".zarray") or {}
    shape = metadata.get("shape")
    sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, list) else []
    return (sizes[-2], sizes[-1]) if len(sizes) > 1 else (0, 0)
