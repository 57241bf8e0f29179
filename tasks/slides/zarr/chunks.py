"""Owns the files of a Zarr array's chunks and shards: how they are named, and which of them are there.

Zarr reads a chunk whose file is missing as empty, without an error. A store whose metadata and files name chunks differently
is empty to Zarr, so the names on disk decide.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_COUNTED_CHUNKS = 10**7


class ChunkNames(NamedTuple):
    """How the files of chunks are named.

    Attributes:
        separator: Between the numbers of a chunk, "." or "/".
        has_prefix: Whether names start with "c", as Zarr v3 has it by default.
    """

    separator: str
    has_prefix: bool

    def example(self, n_axes: int) -> str:
        """Return the name of the first chunk."""
        return self.separator.join(["c"] * self.has_prefix + ["0"] * n_axes)


def read_names(metadata: Mapping[str, Any]) -> ChunkNames:
    """Read from an array's metadata how its chunks are named."""
    if metadata.get("zarr_format") == 2:
        return ChunkNames(str(metadata.get("dimension_separator") or "."), False)
    encoding = metadata.get("chunk_key_encoding")
    encoding = encoding if isinstance(encoding, dict) else {"name": encoding}
    has_prefix = encoding.get("name") != "v2"
    configuration = encoding.get("configuration") or {}
    return ChunkNames(str(configuration.get("separator", "/" if has_prefix else ".")), has_prefix)


def replace_names(metadata: Mapping[str, Any], names: ChunkNames) -> dict[str, Any]:
    """Return an array's metadata with other names of chunks."""
    if metadata.get("zarr_format") == 2:
        return {**metadata, "dimension_separator": names.separator}
    kind = "default" if names.has_prefix else "v2"
    return {**metadata, "chunk_key_encoding": {"name": kind, "configuration": {"separator": names.separator}}}


def other_names(metadata: Mapping[str, Any]) -> list[ChunkNames]:
    """List the other names that files of such an array can have, the most similar first."""
    stated = read_names(metadata)
    prefixes = [False] if metadata.get("zarr_format") == 2 else [stated.has_prefix, not stated.has_prefix]
    names = [ChunkNames(separator, has_prefix) for has_prefix, separator in itertools.product(prefixes, "/.")]
    return [each for each in names if each != stated]


def find_chunks(folder: Path, names: ChunkNames, grid: Sequence[int]) -> NDArray[np.bool_]:
    """Find out which chunks have a file, by listing folders.

    Args:
        folder: The array's folder.
        names: How the files are named.
        grid: Number of chunks along each axis; of shards, where chunks are in shards.

    Returns:
        A truth value per chunk.

    Raises:
        OSError: A folder can't be listed.
    """
    present = np.zeros(tuple(grid), dtype=bool)
    if names.separator == ".":
        start = ["c"] if names.has_prefix else []
        for name in _list(folder, is_folder=False):
            parts = name.split(".")
            place = _read_index(parts[len(start) :], grid)
            if place is not None and parts[: len(start)] == start:
                present[place] = True
        return present
    _mark_nested(folder / "c" if names.has_prefix else folder, (), grid, present)
    return present


def find_any_file(folder: Path) -> str | None:
    """Find a file that could be a chunk of some name: its path in the array's folder, or none."""
    for path, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(".") and name != "zarr.json":
                return (Path(path) / name).relative_to(folder).as_posix()
    return None


def _mark_nested(folder: Path, index: tuple[int, ...], grid: Sequence[int], present: NDArray[np.bool_]) -> None:
    axis = len(index)
    is_last = axis == len(grid) - 1
    for name in _list(folder, is_folder=not is_last):
        place = _read_index([name], grid[axis : axis + 1])
        if place is None:
            continue
        if is_last:
            present[(*index, *place)] = True
        else:
            _mark_nested(folder / name, (*index, *place), grid, present)


def _list(folder: Path, is_folder: bool) -> list[str]:
    """List the names of the folders or of the files in a folder; none if it isn't there."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir() == is_folder]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_index(parts: Sequence[str], grid: Sequence[int]) -> tuple[int, ...] | None:
    """Read the numbers of a chunk; none if these are no numbers of a chunk in the grid."""
    if len(parts) != len(grid) or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    index = tuple(map(int, parts))
    if list(map(str, index)) != list(parts):
        return None
    return index if all(number < size for number, size in zip(index, grid, strict=True)) else None
