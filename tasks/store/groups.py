"""Read and write the metadata of Zarr groups: whole or not at all, and never taken for whole where it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from slidesam.tasks.run.files import read_json, write_atomic

_GROUP_KEYS = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}


class GroupFacts(NamedTuple):
    """The metadata of a Zarr group."""

    zarr_format: int
    attributes: dict[str, Any]


def read_group(folder: Path) -> GroupFacts | None:
    """Read the metadata of a group; None if there is no group, or it is damaged."""
    if (folder / "zarr.json").exists():
        document = read_json(folder / "zarr.json") or {}
        attributes = document.get("attributes", {})
        is_group = document.get("node_type") == "group" and document.get("zarr_format") == 3
        # zarr refuses a group with other keys.
        is_group = is_group and document.keys() <= _GROUP_KEYS
        return GroupFacts(3, attributes) if is_group and isinstance(attributes, dict) else None
    if read_json(folder / ".zgroup") != {"zarr_format": 2}:
        return None
    read = read_json(folder / ".zattrs") if (folder / ".zattrs").exists() else {}
    return None if read is None else GroupFacts(2, read)


def write_group(folder: Path, zarr_format: int, attributes: dict[str, Any]) -> None:
    """Write the metadata of a group; on return it is on the disk.

    Raises:
        OutputError: It can't be written.
    """
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), zarr_format=zarr_format, attributes=attributes)  # type: ignore[arg-type]
    for name, value in files.items():
        write_atomic(folder / name, value.to_bytes())


def set_attribute(group: zarr.Group, name: str, value: Any) -> None:
    """Set an attribute of a group that isn't OME's.

    The file is read anew: a `zarr.Group` doesn't see what others have written since it was opened.
    """
    _update(group, {name: value})


def set_ome_attributes(group: zarr.Group, values: dict[str, Any]) -> None:
    """Set OME attributes: at the top in Zarr v2, under `ome` in v3."""
    if group.metadata.zarr_format == 3:
        values = {"ome": {**_attributes(group).get("ome", {}), "version": "0.5", **values}}
    _update(group, values)


def remove_ome_attributes(group: zarr.Group, names: Sequence[str]) -> None:
    """Remove OME attributes."""
    attributes = _attributes(group)
    if group.metadata.zarr_format == 3:
        ome = {key: value for key, value in attributes.get("ome", {}).items() if key not in names}
        attributes = {**attributes, "ome": ome}
    else:
        attributes = {key: value for key, value in attributes.items() if key not in names}
    write_group(group_folder(group), group.metadata.zarr_format, attributes)


def _update(group: zarr.Group, values: dict[str, Any]) -> None:
    write_group(group_folder(group), group.metadata.zarr_format, {**_attributes(group), **values})


def _attributes(group: zarr.Group) -> dict[str, Any]:
    facts = read_group(group_folder(group))
    return {} if facts is None else facts.attributes


def group_folder(group: zarr.Group) -> Path:
    """Return the folder of a group of a local store."""
    return Path(str(group.store_path.store).removeprefix("file://")) / group.path
