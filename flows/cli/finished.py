"""The finished results that a command is given."""

from __future__ import annotations

from pathlib import Path

from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.run.layout import STORE_SUFFIX, find_provenance
from slidesam.tasks.run.records import Provenance


def finished_runs(store: Path, label: str | None = None) -> dict[str, Provenance]:
    """Read the provenance of the finished label images of a store, by label, from the files beside it, which `clean` keeps.

    Args:
        store: `<name>.ome.zarr` in an output folder.
        label: Only this one.

    Raises:
        SettingsError: It isn't a store, none of its label images is finished, or not this one.
        OutputError: The record of this label, or of all, can't be read.
    """
    folder, name = store.absolute().parent, store.absolute().name.removesuffix(STORE_SUFFIX)
    if not store.is_dir() or not store.absolute().name.endswith(STORE_SUFFIX):
        stores = sorted(path.name for path in store.glob(f"*{STORE_SUFFIX}")) if store.is_dir() else []
        example = f", such as {store / stores[0]}" if stores else ""
        raise SettingsError(
            f"{store} is not a result: give <name>{STORE_SUFFIX} in the folder that was named with --output{example}"
        )
    runs, errors = {}, {}
    for finished_label, path in find_provenance(folder, name).items():
        # One label's damaged file doesn't stop the others.
        try:
            if (record := Provenance.read(path)) is not None:
                runs[finished_label] = record
        except OutputError as error:
            errors[finished_label] = error
    if label in errors or (errors and not runs):
        raise errors.get(label or "", next(iter(errors.values())))
    if not runs:
        raise SettingsError(
            f"{store}: none of its label images is finished; `slidesam status {folder}` shows the status"
        )
    if label is not None and label not in runs:
        raise SettingsError(f"{store} has no finished label image {label!r}, only {' and '.join(runs)}")
    return runs if label is None else {label: runs[label]}
