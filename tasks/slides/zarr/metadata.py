"""Owns the metadata of Zarr folders: finding the image that a person means, and checking its `multiscales`.

1. `find_images` looks at the folder itself, its numbered series, or the one Zarr store inside it. Plates, wells and label
   images are refused in words.
2. `Multiscales` checks the metadata of one image: axes, levels, scales. No array is opened here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from slidesam.tasks.errors import SlideError, in_one_line
from slidesam.tasks.slides.ome_xml import OmeImage
from slidesam.tasks.slides.pixel_size import PixelSize, choose_size, state_size

GROUP_FILES = ("zarr.json", ".zattrs", ".zgroup")
# The order is part of a slide's identity.
METADATA_FILES = (".zgroup", ".zattrs", ".zarray", "zarr.json")
MAX_METADATA_BYTES = 2**26
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class ZarrImage:
    """The folder of one image.

    Attributes:
        folder: Where it is.
        attributes: Of its Zarr group.
        root: The store that it is in, or itself.
        number: Its number there.
        count: Number of images there.
        layout: Kind of layout in words.
    """

    folder: Path
    attributes: Attributes
    root: Path
    number: int
    count: int
    layout: str


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; none if the file doesn't exist.

    Raises:
        ValueError: It holds something else.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} isn't valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} isn't a JSON object")
    return value


def _read_attributes(folder: Path) -> Attributes | None:
    """Read the attributes of a Zarr group, those of OME-Zarr 0.5 from their "ome" key; none if it is no group."""
    v3 = read_json_object(folder / "zarr.json")
    if v3 is not None:
        if v3.get("node_type") != "group":
            return None
        attributes = v3.get("attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        ome = attributes.get("ome")
        return {**attributes, **ome} if isinstance(ome, dict) else attributes
    attributes = read_json_object(folder / ".zattrs")
    return attributes or {} if attributes is not None or (folder / ".zgroup").is_file() else None


def find_images(path: Path, file: str) -> list[ZarrImage]:
    """Find the images that a path means, at least one.

    Args:
        path: An image folder, a store of numbered series, or a folder that holds one store.
        file: Name for messages.

    Raises:
        SlideError: There is none, or what is there is a plate, a well or labels.
        ValueError: A metadata file isn't JSON.
    """
    root, attributes = _find_store(path, file)
    _refuse_others(root, attributes, file)
    if attributes.get("multiscales"):
        above = _read_attributes(root.parent) or {}
        return [ZarrImage(root, attributes, root, 0, 1, _layout(attributes, "bioformats2raw.layout" in above))]
    series_names = (_read_attributes(root / "OME") or {}).get("series")
    names = (
        [str(name) for name in series_names]
        if isinstance(series_names, list) and series_names
        else _numbered_folders(root)
    )
    images = []
    for number, name in enumerate(names):
        folder = _inside(root, name, file)
        inner = _read_attributes(folder)
        if inner is None or not inner.get("multiscales"):
            if isinstance(series_names, list):
                raise SlideError(f"{file}: lists series {name!r}, which isn't there; copy the whole folder again")
            continue
        images.append(ZarrImage(folder, inner, root, number, len(names), _layout(inner, True)))
    if not images:
        raise SlideError(f"{file}: holds no multiscale image (no OME-Zarr metadata); give the folder of an image")
    return images


def _find_store(path: Path, file: str) -> tuple[Path, Attributes]:
    """Find the Zarr group that a path means: the path itself, or the only group inside."""
    attributes = _read_attributes(path)
    if attributes is not None:
        return path, attributes
    if (path / ".zarray").is_file() or (path / "zarr.json").is_file():
        raise SlideError(f"{file}: is a bare Zarr array; give the OME-Zarr folder that holds it ({path.parent.name})")
    stores = [
        child
        for child in sorted(path.iterdir())
        if child.is_dir() and any((child / name).is_file() for name in METADATA_FILES)
    ]
    if not stores:
        raise SlideError(f"{file}: is a folder without Zarr metadata; give a slide file or an OME-Zarr folder")
    if len(stores) > 1:
        listing = ", ".join(in_one_line(child.name, 60) for child in stores[:3]) + (", ..." if len(stores) > 3 else "")
        raise SlideError(f"{file}: holds several Zarr folders ({listing}); give one of them")
    attributes = _read_attributes(stores[0])
    if attributes is None:
        raise SlideError(f"{file}: holds a bare Zarr array; give an OME-Zarr folder")
    return stores[0], attributes


def _refuse_others(root: Path, attributes: Attributes, file: str) -> None:
    if "plate" in attributes:
        wells = attributes["plate"].get("wells") if isinstance(attributes["plate"], dict) else None
        first = (
            wells[0].get("path", "A/1") if isinstance(wells, list) and wells and isinstance(wells[0], dict) else "A/1"
        )
        raise SlideError(
            f"{file}: is a plate of many images; give one of them, such as {root.name}/{in_one_line(str(first), 60)}/0"
        )
    if "well" in attributes:
        raise SlideError(f"{file}: is a well with several images; give one of them, such as {root.name}/0")
    if "image-label" in attributes or ("labels" in attributes and "multiscales" not in attributes):
        raise SlideError(f"{file}: holds labels, not an image; give the image folder above it")


def _numbered_folders(root: Path) -> list[str]:
    return sorted((child.name for child in root.iterdir() if child.is_dir() and child.name.isdecimal()), key=int)


def _inside(root: Path, name: str, file: str) -> Path:
    """Return the folder below `root` to which a path in the metadata leads.

    Raises:
        SlideError: It leads elsewhere.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith(("/", "\\")) or "\\" in name or "\0" in name:
        raise SlideError(
            f"{file}: its metadata point outside the folder ({name[:60]!r}); the file is damaged, write it again"
        )
    return root.joinpath(*parts)


def _layout(attributes: Attributes, bioformats2raw: bool) -> str:
    multiscales = attributes.get("multiscales")
    first = multiscales[0] if isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict) else {}
    version = in_one_line(str(attributes.get("version") or first.get("version") or ""), 20)
    return " ".join(("bioformats2raw Zarr" if bioformats2raw else "OME-Zarr", version)).strip()


class Multiscales:
    """First `multiscales` entry of an image, checked.

    Attributes:
        axes: One of "t", "c", "z", "y", "x" per axis of the arrays.
        datasets: Paths of the levels below the image folder.

    Raises:
        SlideError: Something needed is missing or makes no sense.
    """

    def __init__(self, file: str, image: ZarrImage) -> None:
        self._file = file
        entries = image.attributes.get("multiscales")
        entry = entries[0] if isinstance(entries, list) and entries else None
        datasets = entry.get("datasets") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(datasets, list) or not datasets:
            raise SlideError(f"{file}: its metadata list no levels; the file is damaged, write it again")
        self._entry, self._levels = entry, datasets
        self.datasets: list[str] = []
        for level in datasets:
            name = level.get("path") if isinstance(level, dict) else None
            if not isinstance(name, str):
                raise SlideError(f"{file}: a level in its metadata has no path; the file is damaged, write it again")
            self.datasets.append(str(_inside(image.folder, name, file).relative_to(image.folder)))
        self._axes = self._checked_axes()
        self.axes = "".join(str(axis["name"]).lower() for axis in self._axes)

    def _checked_axes(self) -> list[dict[str, Any]]:
        axes = self._entry.get("axes")
        if axes is None:
            return [{"name": name} for name in "tczyx"]  # versions 0.1 and 0.2 have no axes: there are always five
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes] if isinstance(axes, list) else []
        names = [str(axis.get("name")).lower() if isinstance(axis, dict) else "?" for axis in axes]
        if len(set(names)) != len(names) or not {"y", "x"} <= set(names) <= set("tczyx"):
            axis_names = in_one_line(", ".join(names), 60) or "missing"
            raise SlideError(f"{self._file}: its axes are {axis_names}, not some of t, c, z, y, x; write it again")
        return axes

    def pixel_size(self, ome: OmeImage | None) -> tuple[PixelSize | None, list[str]]:
        """Return the pixel size of the finest level, and remarks on what the metadata state."""
        scale = [a * b for a, b in zip(self._scale(self._levels[0]), self._scale(self._entry), strict=True)]
        factors = dict(zip(self.axes, scale, strict=True))
        units = {name: axis.get("unit", axis.get("units")) for name, axis in zip(self.axes, self._axes, strict=True)}
        # Without units, a scale tells how levels relate, and nothing about lengths.
        y, x = (factors[axis] if units[axis] else None for axis in "yx")
        own = state_size("OME-Zarr metadata", y, x, (str(units["y"]), str(units["x"])))
        size, remarks = choose_size([own, None if ome is None else ome.pixel_size])
        if size is None and own is None and any(factor != 1 for factor in scale):
            remarks.append("its scale has no unit and isn't used as pixel size")
        return size, remarks

    def _scale(self, part: Mapping[str, Any]) -> list[float]:
        transformations = part.get("coordinateTransformations")
        for transformation in transformations if isinstance(transformations, list) else []:
            scale = transformation.get("scale") if isinstance(transformation, dict) else None
            if transformation.get("type") == "scale" and isinstance(scale, list) and len(scale) == len(self._axes):
                if not all(
                    isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0 for factor in scale
                ):
                    scale_text = in_one_line(str(scale), 60)
                    raise SlideError(f"{self._file}: its scale is {scale_text}, not positive numbers; write it again")
                return [float(factor) for factor in scale]
        return [1.0] * len(self._axes)
