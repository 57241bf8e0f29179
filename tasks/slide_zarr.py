"""Slides that are Zarr folders: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3), older ones, and what bioformats2raw writes.

1. `_find_images` finds the image folders below what the person pointed at: the folder itself, its numbered series, or the
   one Zarr store inside it. Plates, wells and label images are refused in words.
2. `_Multiscales` checks the metadata of one image: axes, levels, scales.
3. `_open_array` opens a level's array and refuses what can't be true; Zarr itself reads the chunks.

Whether three channels are red, green and blue: yes if they are called so; else, where `METADATA.ome.xml` is there, if it says
three samples per pixel; else if they are 8 bit, without names of their own, and coloured red, green and blue.
"""

from __future__ import annotations

import json
import math
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slide_ome import OmeImage, micrometres, read_ome_xml
from slidesam.tasks.slide_source import (
    RGB_NAMES,
    Shape5,
    SourceFacts,
    TczyxView,
    check_chunk,
    check_dtype,
    check_level,
    credible_mpp,
    errors_as_slide_errors,
    one_line_name,
)

METADATA_FILES = (".zgroup", ".zattrs", ".zarray", "zarr.json")
MAX_METADATA_BYTES = 2**26
_NO_NAME = re.compile(r"(channel|ch|c)?[ _:#-]*\d*", re.IGNORECASE)
_RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
_Attributes: TypeAlias = Mapping[str, Any]
_WARNINGS = threading.Lock()


@dataclass(frozen=True)
class _Image:
    """One image folder: its attributes, the store it is in, its number there and how many there are, kind of layout."""

    folder: Path
    attributes: _Attributes
    root: Path
    number: int
    count: int
    layout: str


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
            image = _find_image(path, self._file, series)
            multiscales = _Multiscales(self._file, image)
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
            return _fetch(array, self._axes, ts, cs, zs, region)

        chunks = _tczyx(self._axes, array.chunks)
        return TczyxView(self._file, level, _tczyx(self._axes, array.shape), self.facts.dtype, chunks, fetch)

    def close(self) -> None:
        """Nothing to give back: Zarr opens files as it reads them."""

    def _check_levels(self) -> None:
        shapes = [_tczyx(self._axes, array.shape) for array in self._arrays]
        for number, (finer, coarser) in enumerate(zip(shapes, shapes[1:], strict=False), start=1):
            fits = finer[:2] == coarser[:2] and all(b <= a for a, b in zip(finer, coarser, strict=True))
            if not fits or finer[3:] == coarser[3:]:
                raise SlideError(
                    f"{self._file}: level {number} of {coarser} isn't a smaller copy of level {number - 1} of {finer} "
                    "(t, c, z, y, x); the file is damaged or mislabelled, write it again"
                )
        if len({array.dtype for array in self._arrays}) > 1:
            raise SlideError(f"{self._file}: its levels differ in pixel type; the file is mislabelled, write it again")

    def _facts(self, image: _Image, multiscales: _Multiscales) -> SourceFacts:
        shapes = tuple(_tczyx(self._axes, array.shape) for array in self._arrays)
        ome = _ome_image(image, shapes[0])
        mpp, warnings = multiscales.mpp(ome)
        dtype = check_dtype(self._file, self._arrays[0].dtype)
        names, is_rgb = _channels(image.attributes, shapes[0][1], dtype, ome)
        folders = [image.root, image.folder, *(image.folder / dataset for dataset in multiscales.datasets)]
        files = [folder / name for folder in folders for name in METADATA_FILES]
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
        )


def _fetch(array: Any, axes: str, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
    channels = list(cs)
    contiguous = channels == list(range(channels[0], channels[0] + len(channels)))
    wanted: dict[str, Any] = {
        "t": slice(ts.start, ts.stop, ts.step),
        "c": slice(channels[0], channels[-1] + 1) if contiguous else channels,
        "z": slice(zs.start, zs.stop, zs.step),
        "y": slice(region.y0, region.y1),
        "x": slice(region.x0, region.x1),
    }
    selection = tuple(wanted[axis] for axis in axes)
    pixels: NDArray[Any] = np.asarray(array[selection] if contiguous or "c" not in axes else array.oindex[selection])
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    present = [axis for axis in "tczyx" if axis in axes]
    pixels = pixels.transpose([axes.index(axis) for axis in present])
    return pixels[tuple(slice(None) if axis in axes else None for axis in "tczyx")]


def _tczyx(axes: str, sizes: Sequence[int]) -> Shape5:
    t, c, z, y, x = (int(sizes[axes.index(axis)]) if axis in axes else 1 for axis in "tczyx")
    return t, c, z, y, x


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, none where there is no such file.

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


def _attributes(folder: Path) -> _Attributes | None:
    """Attributes of a Zarr group, with those of OME-Zarr 0.5 taken out of their "ome" key; none where it is no group."""
    v3 = _json(folder / "zarr.json")
    if v3 is not None:
        if v3.get("node_type") != "group":
            return None
        attributes = v3.get("attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        inside = attributes.get("ome")
        return {**attributes, **inside} if isinstance(inside, dict) else attributes
    attributes = _json(folder / ".zattrs")
    return attributes or {} if attributes is not None or (folder / ".zgroup").is_file() else None


def _find_image(path: Path, file: str, series: int) -> _Image:
    root, attributes = _store(path, file)
    _refuse_others(root, attributes, file)
    if attributes.get("multiscales"):
        above = _attributes(root.parent) or {}
        return _checked_series(
            [_Image(root, attributes, root, 0, 1, _layout(attributes, "bioformats2raw.layout" in above))], file, series
        )
    listed = (_attributes(root / "OME") or {}).get("series")
    names = [str(name) for name in listed] if isinstance(listed, list) and listed else _numbered(root)
    images = []
    for number, name in enumerate(names):
        folder = _inside(root, name, file)
        inner = _attributes(folder)
        if inner is None or not inner.get("multiscales"):
            if isinstance(listed, list):
                raise SlideError(f"{file}: lists series {name!r}, which isn't there; copy the whole folder again")
            continue
        images.append(_Image(folder, inner, root, number, len(names), _layout(inner, True)))
    if not images:
        raise SlideError(f"{file}: holds no multiscale image (no OME-Zarr metadata); point at the folder of an image")
    return _checked_series(images, file, series)


def _checked_series(images: Sequence[_Image], file: str, series: int) -> _Image:
    if series >= len(images):
        raise SettingsError(f"setting slide.series: {file} has images 0 to {len(images) - 1}, not {series}")
    return images[series]


def _store(path: Path, file: str) -> tuple[Path, _Attributes]:
    """The Zarr group that a path means: itself, or the only one inside it."""
    attributes = _attributes(path)
    if attributes is not None:
        return path, attributes
    if (path / ".zarray").is_file() or (path / "zarr.json").is_file():
        raise SlideError(
            f"{file}: is a bare Zarr array; point at the OME-Zarr folder that holds it ({path.parent.name})"
        )
    found = [
        child
        for child in sorted(path.iterdir())
        if child.is_dir() and any((child / name).is_file() for name in METADATA_FILES)
    ]
    if not found:
        raise SlideError(f"{file}: is a folder without Zarr metadata; point at a slide file or an OME-Zarr folder")
    if len(found) > 1:
        shown = ", ".join(child.name for child in found[:3]) + (", ..." if len(found) > 3 else "")
        raise SlideError(f"{file}: holds several Zarr folders ({shown}); point at one of them")
    attributes = _attributes(found[0])
    if attributes is None:
        raise SlideError(f"{file}: holds a bare Zarr array; point at an OME-Zarr folder")
    return found[0], attributes


def _refuse_others(root: Path, attributes: _Attributes, file: str) -> None:
    if "plate" in attributes:
        wells = attributes["plate"].get("wells") if isinstance(attributes["plate"], dict) else None
        first = (
            wells[0].get("path", "A/1") if isinstance(wells, list) and wells and isinstance(wells[0], dict) else "A/1"
        )
        raise SlideError(f"{file}: is a plate of many images; point at one of them, such as {root.name}/{first}/0")
    if "well" in attributes:
        raise SlideError(f"{file}: is a well with several images; point at one of them, such as {root.name}/0")
    if "image-label" in attributes or ("labels" in attributes and "multiscales" not in attributes):
        raise SlideError(f"{file}: holds labels, not an image; point at the image folder above it")


def _numbered(root: Path) -> list[str]:
    return sorted((child.name for child in root.iterdir() if child.is_dir() and child.name.isdecimal()), key=int)


def _inside(root: Path, name: str, file: str) -> Path:
    """A folder below `root`, by a path from metadata.

    Raises:
        SlideError: It leads elsewhere.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith(("/", "\\")) or "\\" in name or "\0" in name:
        raise SlideError(
            f"{file}: its metadata point outside the folder ({name[:60]!r}); the file is damaged, write it again"
        )
    return root.joinpath(*parts)


def _layout(attributes: _Attributes, bioformats2raw: bool) -> str:
    multiscales = attributes.get("multiscales")
    first = multiscales[0] if isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict) else {}
    version = str(attributes.get("version") or first.get("version") or "")[:20]
    return " ".join(("bioformats2raw Zarr" if bioformats2raw else "OME-Zarr", version)).strip()


class _Multiscales:
    """The first `multiscales` entry of an image, checked.

    Attributes:
        axes: One of "t", "c", "z", "y", "x" per axis of the arrays.
        datasets: Paths of the levels below the image folder.

    Raises:
        SlideError: Something needed is missing or makes no sense.
    """

    def __init__(self, file: str, image: _Image) -> None:
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
            return [{"name": name} for name in "tczyx"]  # 0.1 and 0.2 have none: always five
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes] if isinstance(axes, list) else []
        names = [str(axis.get("name")).lower() if isinstance(axis, dict) else "?" for axis in axes]
        if len(set(names)) != len(names) or not {"y", "x"} <= set(names) <= set("tczyx"):
            raise SlideError(
                f"{self._file}: its axes are {', '.join(names) or 'missing'}, not some of t, c, z, y, x; write it again"
            )
        return axes

    def mpp(self, ome: OmeImage | None) -> tuple[tuple[float, float] | None, list[str]]:
        """Pixel size (y, x) of the finest level in µm, and why there is none."""
        scale = [a * b for a, b in zip(self._scale(self._levels[0]), self._scale(self._entry), strict=True)]
        sizes, units = {}, {}
        for axis, factor in zip(self._axes, scale, strict=True):
            name = str(axis["name"]).lower()
            units[name] = axis.get("unit")
            sizes[name] = micrometres(factor, str(axis["unit"])) if axis.get("unit") else None
        mpp, remarks = credible_mpp(sizes["y"], sizes["x"], "OME-Zarr metadata")
        if mpp is None and ome is not None:
            mpp, more = credible_mpp(*ome.mpp, "OME metadata")
            remarks += more
        if mpp is None and not remarks and any(factor != 1 for factor in scale):
            remarks.append(
                f"its scale is in units of {units['y'] or 'nothing'}, not a length, and isn't used as pixel size"
            )
        return mpp, remarks

    def _scale(self, part: Mapping[str, Any]) -> list[float]:
        transformations = part.get("coordinateTransformations")
        for each in transformations if isinstance(transformations, list) else []:
            scale = each.get("scale") if isinstance(each, dict) else None
            if each.get("type") == "scale" and isinstance(scale, list) and len(scale) == len(self._axes):
                if not all(
                    isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0 for factor in scale
                ):
                    raise SlideError(f"{self._file}: its scale is {scale}, not positive numbers; write it again")
                return [float(factor) for factor in scale]
        return [1.0] * len(self._axes)


def _open_array(file: str, number: int, folder: Path, multiscales: _Multiscales) -> Any:
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
    if array.ndim != len(multiscales.axes):
        raise SlideError(
            f"{file}: level {number} has {array.ndim} axes where its metadata list {len(multiscales.axes)}; write it again"
        )
    check_level(file, number, _tczyx(multiscales.axes, array.shape))
    dtype = check_dtype(file, array.dtype)
    if min(array.chunks) < 1:
        raise SlideError(f"{file}: level {number} has chunks of {array.chunks}; the file is damaged, write it again")
    check_chunk(file, number, "chunk", array.chunks, dtype.itemsize)
    if number == 0 and not any(child.name not in METADATA_FILES for child in folder.iterdir()):
        raise SlideError(f"{file}: level 0 holds no pixels, only metadata; copy the whole folder again")
    return array


def _ome_image(image: _Image, shape: Shape5) -> OmeImage | None:
    """What bioformats2raw's METADATA.ome.xml says of an image, if it is there and of the same size."""
    for folder in (image.root, image.root.parent):
        for path in (folder / "OME" / "METADATA.ome.xml", folder / "METADATA.ome.xml"):
            if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
                continue
            try:
                images = read_ome_xml(path.read_text("utf-8", "replace"), path.name).images
            except ValueError:
                return None
            number = int(image.folder.name) if image.folder.name.isdecimal() else image.number
            found = images[number] if number < len(images) else None
            return found if found is not None and found.size == (shape[4], shape[3]) else None
    return None


def _channels(
    attributes: _Attributes, count: int, dtype: np.dtype[Any], ome: OmeImage | None
) -> tuple[tuple[str, ...], bool]:
    """Names of the channels, and whether they are red, green and blue."""
    omero = attributes.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    entries = [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []
    entries = entries if len(entries) == count else [{}] * count
    names = [" ".join(str(entry.get("label", "")).split()) for entry in entries]
    if ome is not None and len(ome.channel_names) == count:
        names = [
            name if not _NO_NAME.fullmatch(name) else known or name
            for name, known in zip(names, ome.channel_names, strict=True)
        ]
    colours = tuple(str(entry.get("color", "")).upper().lstrip("#")[:6] for entry in entries)
    if tuple(name.lower() for name in names) == RGB_NAMES:
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
