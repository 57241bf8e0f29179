"""Owns the metadata of Zarr folders: finding the image that a person means, and checking its `multiscales`.

1. `find_images` looks at the folder itself, its numbered series, or the one Zarr store inside it. Plates, wells and label
   images are refused in words.
2. `Multiscales` checks the metadata of one image: axes, levels, scales. No array is opened here.
"""

from __future__ import annotations

import json
import math
import os
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
_AXIS_NAMES = {
    **{name: name for name in "tczyx"}, "time": "t", "channel": "c", "channels": "c", "depth": "z", "height": "y", "width": "x",
}  # fmt: skip
_OME_KEYS = ("multiscales", "plate", "well", "bioformats2raw.layout", "image-label", "labels", "series", "omero")
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class ZarrImage:
    """The folder of one image.

    Attributes:
        folder: Where it is.
        attributes: Of its Zarr group.
        root: The store that it is in, or itself.
        number: Its number among the images there.
        count: Number of images there.
        layout: Kind of layout in words.
    """

    folder: Path
    attributes: Attributes
    root: Path
    number: int
    count: int
    layout: str

    @property
    def zarr_format(self) -> int:
        """Version of the metadata files that the attributes are from, 2 or 3."""
        v3 = _read_v3(self.folder)
        return 2 if v3 is None or not v3.get("multiscales") else 3


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
    """Read the attributes of a Zarr group, those of OME-Zarr 0.5 from their "ome" key; none if it is no group.

    A folder may hold metadata of Zarr v2 and v3 beside each other: the version that has OME metadata counts.
    """
    v3, v2 = _read_v3(folder), read_json_object(folder / ".zattrs")
    if v3 is None or (v2 is not None and not _has_ome(v3) and _has_ome(v2)):
        is_group = v2 is not None or (folder / ".zgroup").is_file()
        return v2 or {} if is_group else None
    return v3


def _read_v3(folder: Path) -> Attributes | None:
    """Read the attributes of a Zarr v3 group; none if it is no group of that version."""
    metadata = read_json_object(folder / "zarr.json")
    if metadata is None or metadata.get("node_type") != "group":
        return None
    attributes = metadata.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    ome = attributes.get("ome")
    return {**attributes, **ome} if isinstance(ome, dict) else attributes


def _has_ome(attributes: Attributes) -> bool:
    return any(attributes.get(key) for key in _OME_KEYS)


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
    found = []
    for name in names:
        folder = _inside(root, name, file)
        inner = _read_attributes(folder)
        if inner is None or not inner.get("multiscales"):
            if isinstance(series_names, list):
                raise SlideError(f"{file}: lists series {name!r}, which isn't there; copy the whole folder again")
            continue
        found.append((folder, inner))
    if not found:
        raise SlideError(f"{file}: holds no multiscale image (no OME-Zarr metadata); give the folder of an image")
    return [
        ZarrImage(folder, inner, root, number, len(found), _layout(inner, True))
        for number, (folder, inner) in enumerate(found)
    ]


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
    return _inside(path, stores[0].name, file), attributes


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


def is_below(path: Path, real_folder: str) -> bool:
    """Tell whether a path leads into a folder, all links resolved.

    Args:
        path: The path.
        real_folder: The folder, without links.
    """
    return os.path.realpath(path).startswith(f"{real_folder.rstrip(os.sep)}{os.sep}")


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
    folder = root.joinpath(*parts)
    if not is_below(folder, os.path.realpath(root)):
        raise SlideError(
            f"{file}: {name[:60]!r} in it is a link to outside the folder; copy what it should hold into it"
        )
    return folder


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
        remarks: Warnings for people.

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
        self.remarks: list[str] = []
        self._axes = self._read_axes()
        self.axes = "".join(self._name_axes())
        self._transformations = self._list_transformations()
        self._scale, self._translation = self._apply_transformations()

    def _read_axes(self) -> list[dict[str, Any]]:
        axes = self._entry.get("axes")
        if axes is None:
            return [{"name": name} for name in "tczyx"]  # versions 0.1 and 0.2 have no axes: there are always five
        axes = axes if isinstance(axes, list) else []
        return [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]

    def _name_axes(self) -> list[str]:
        """Name each axis "t", "c", "z", "y" or "x": by its name, otherwise by its type; spatial axes are in the order z, y, x."""
        stated = [in_one_line(str(axis.get("name")), 20) for axis in self._axes]
        names = [_AXIS_NAMES.get(name.lower(), "") for name in stated]
        types = [str(axis.get("type")).lower() for axis in self._axes]
        names = [name or {"time": "t", "channel": "c"}.get(kind, "") for name, kind in zip(names, types, strict=True)]
        spatial = [
            number for number, (name, kind) in enumerate(zip(names, types, strict=True)) if not name and kind == "space"
        ]
        if len(spatial) in (2, 3) and not {"z", "y", "x"} & set(names):
            for number, name in zip(spatial, "zyx"[-len(spatial) :], strict=True):
                names[number] = name
            listing = ", ".join(f"{stated[number]} as {names[number]}" for number in spatial)
            self.remarks.append(f"its axes have names of their own and are taken in their order: {listing}")
        if len(set(names)) != len(names) or not {"y", "x"} <= set(names) <= set("tczyx"):
            raise SlideError(
                f"{self._file}: its axes are {', '.join(stated) or 'missing'}, not some of t, c, z, y, x; write it again"
            )
        return names

    def pixel_size(self, ome: OmeImage | None) -> tuple[PixelSize | None, list[str]]:
        """Return the pixel size of the finest level, and remarks on what the metadata state."""
        factors = dict(zip(self.axes, self._scale, strict=True))
        units = {name: axis.get("unit", axis.get("units")) for name, axis in zip(self.axes, self._axes, strict=True)}
        # Without units, a scale tells how levels relate, and nothing about lengths.
        y, x = (factors[axis] if units[axis] and self._has_scale else None for axis in "yx")
        own = state_size("OME-Zarr metadata", y, x, (str(units["y"]), str(units["x"])))
        size, remarks = choose_size([own, None if ome is None else ome.pixel_size])
        if size is None and own is None and any(factor != 1 for factor in self._scale):
            remarks.append("its scale has no unit and isn't used as pixel size")
        return size, remarks

    @property
    def _has_scale(self) -> bool:
        """Whether any transformation states a scale: a unit alone doesn't say that pixels are 1 of it."""
        return any(kind == "scale" for kind, _ in self._transformations)

    def origin(self) -> tuple[float, float]:
        """Return where the centre of the first pixel lies, in pixels along y and x: the translation in units of the scale."""
        places = {name: at / size for name, at, size in zip(self.axes, self._translation, self._scale, strict=True)}
        return places["y"], places["x"]

    def _apply_transformations(self) -> tuple[list[float], list[float]]:
        """Apply the transformations of level 0, then those of all levels, and return their scale and translation."""
        scale, translation = [1.0] * len(self._axes), [0.0] * len(self._axes)
        for kind, values in self._transformations:
            if kind == "scale":
                scale = [a * b for a, b in zip(scale, values, strict=True)]
                translation = [a * b for a, b in zip(translation, values, strict=True)]
            else:
                translation = [a + b for a, b in zip(translation, values, strict=True)]
        return scale, translation

    def _list_transformations(self) -> list[tuple[str, list[float]]]:
        """List the scales and translations of level 0, in the order in which they apply.

        One that doesn't fit the axes isn't used, which is said; nor is any translation then, since it may be in its units.

        Raises:
            SlideError: A scale has numbers that aren't positive and finite.
        """
        usable: list[tuple[str, list[float]]] = []
        remarks = []
        for part in (self._levels[0], self._entry):
            transformations = part.get("coordinateTransformations")
            for transformation in transformations if isinstance(transformations, list) else []:
                kind = transformation.get("type") if isinstance(transformation, dict) else None
                if kind not in ("scale", "translation") or kind not in transformation:
                    continue
                values = transformation[kind]
                has_all = isinstance(values, list) and len(values) == len(self._axes)
                is_finite = has_all and all(map(_is_finite, values))
                finding = f"its {kind} is {in_one_line(str(values), 60)}, not {len(self._axes)}"
                if kind == "scale" and has_all and not (is_finite and min(values) > 0):
                    raise SlideError(f"{self._file}: {finding} positive numbers, one per axis; write it again")
                if is_finite:
                    usable.append((kind, [float(value) for value in values]))
                else:
                    others = ", nor is any translation" if kind == "scale" else ""
                    remarks.append(f"{finding} numbers, one per axis; it isn't used{others}")
        self.remarks += remarks
        return [each for each in usable if each[0] == "scale" or not remarks]


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
