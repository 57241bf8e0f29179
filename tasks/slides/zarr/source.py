"""Owns reading OME-Zarr images by the description that inspection made; no metadata are read again.

Zarr itself opens and decodes the chunks.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from zarr.storage import LocalStore, StorePath

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.source import (
    NO_NUMBER,
    FileState,
    Shape5,
    SourceSpec,
    file_states,
    find_white,
)
from slidesam.tasks.slides.zarr.bounded import CheckedStore, bound_codecs, find_limit

_WARNINGS = threading.Lock()


class ZarrLevel(BaseModel):
    """One level: a folder with a Zarr array."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    folder: Path
    """Folder of the array."""
    shape: Shape5
    """Sizes (t, c, z, y, x)."""
    metadata: dict[str, Any]
    """The array's metadata as Zarr stores them, without attributes."""


class ZarrSpec(SourceSpec):
    """Description of an image in a Zarr folder: its arrays, and the files that identify it."""

    kind: Literal["zarr"] = "zarr"
    axes: str
    """One of "t", "c", "z", "y", "x" per axis of the arrays."""
    dtype: str
    """Pixel type of what is read: native byte order, uint8 for booleans."""
    levels: tuple[ZarrLevel, ...]
    """Levels, finest first."""
    files: tuple[Path, ...]
    """Metadata files, which identify the image."""

    @property
    def shapes(self) -> tuple[Shape5, ...]:
        """Sizes (t, c, z, y, x) of each level, finest first."""
        return tuple(level.shape for level in self.levels)

    def with_background(self, is_rgb: bool) -> ZarrSpec:
        """Return the description by which missing chunks, also those inside shards, read as white in bright field.

        A fill value that the store states remains. 0 is what writers set by themselves, so it states nothing.

        References:
            Zarr v3 core specification, "fill_value": the value of chunks that aren't stored.
        """
        if not is_rgb:
            return self
        white = {"fill_value": find_white(np.dtype(self.dtype))}
        levels = [
            level if _states_fill(level) else level.model_copy(update={"metadata": level.metadata | white})
            for level in self.levels
        ]
        return self.model_copy(update={"levels": tuple(levels)})

    def open(self, path: Path) -> ZarrSource:
        """Open the folder."""
        return ZarrSource(path, self)


class ZarrSource:
    """An open Zarr folder, one image of it. Several threads may share one.

    Args:
        path: The folder.
        spec: Description from the inspection.

    Raises:
        OSError: It isn't there.
    """

    def __init__(self, path: Path, spec: ZarrSpec) -> None:
        path.stat()
        self._spec = spec
        self._array = cache(lambda level: open_array(spec.levels[level].folder, spec.levels[level].metadata))

    def states(self) -> tuple[FileState, ...]:
        """Return size and time of the last change of the metadata files; nothing if one of them is gone."""
        try:
            return file_states(self._spec.files)
        except FileNotFoundError:
            return ()

    def close(self) -> None:
        """Do nothing: Zarr opens files only while it reads them."""

    def fetch(self, level: int, ts: range, cs: Sequence[int], zs: range, region: Region) -> NDArray[Any]:
        """Read (t, c, z, y, x) pixels."""
        axes, array, channels = self._spec.axes, self._array(level), sorted(set(cs))
        contiguous = channels == list(range(channels[0], channels[-1] + 1))
        ranges: dict[str, Any] = {
            "t": slice(ts.start, ts.stop, ts.step),
            "c": slice(channels[0], channels[-1] + 1) if contiguous else channels,
            "z": slice(zs.start, zs.stop, zs.step),
            "y": slice(region.y0, region.y1),
            "x": slice(region.x0, region.x1),
        }
        selection = tuple(ranges[axis] for axis in axes)
        pixels: NDArray[Any] = np.asarray(
            array[selection] if contiguous or "c" not in axes else array.oindex[selection]
        )
        present = [axis for axis in "tczyx" if axis in axes]
        pixels = pixels.transpose([axes.index(axis) for axis in present])
        pixels = pixels[tuple(slice(None) if axis in axes else None for axis in "tczyx")]
        if list(cs) != channels:
            pixels = pixels[:, [channels.index(channel) for channel in cs]]
        return pixels.astype(self._spec.dtype, copy=False)


def open_array(folder: Path, metadata: dict[str, Any]) -> Any:
    """Open a Zarr array by its metadata; no file is read.

    Args:
        folder: Folder of the array.
        metadata: The metadata that Zarr stores for it.

    Raises:
        Exception: Zarr can't read such an array.
    """
    with _WARNINGS, warnings.catch_warnings():
        # Harmless mistakes of old writers, such as an empty list of filters.
        warnings.simplefilter("ignore")
        store = LocalStore(folder, read_only=True)
        array = zarr.Array.from_dict(StorePath(store), dict(metadata))
        itemsize = array.dtype.itemsize
        chunk_bytes, file_bytes = (
            math.prod(sides) * itemsize for sides in (array.chunks, array.shards or array.chunks)
        )
        # A shard has an index, of 16 bytes per chunk.
        limit = find_limit(file_bytes) + 16 * (file_bytes // max(chunk_bytes, 1))
        bounded = bound_codecs(metadata, file_bytes, itemsize)
        return zarr.Array.from_dict(StorePath(CheckedStore(store, limit)), bounded)


def _states_fill(level: ZarrLevel) -> bool:
    """Tell whether a level states a value for chunks that aren't stored: a number other than 0."""
    value = open_array(level.folder, level.metadata).fill_value
    return value is not None and 0 < abs(float(value)) < NO_NUMBER
