"""The objects of a run as a page needs them: their columns in pieces, and what they have in common by class or region."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pages.crops import SIDE, SeamCounts
from slidesam.tasks.pages.density import DensityMap

ReadColumns = Callable[[Sequence[str]], Iterator[Mapping[str, NDArray[Any]]]]


class ObjectValues(NamedTuple):
    """The columns of a run's objects.

    Attributes:
        names: Of the columns, in the order of the table.
        read: Reads some of them, of all objects by ascending id, in pieces.
    """

    names: tuple[str, ...]
    read: ReadColumns

    def read_whole(self, name: str) -> NDArray[Any]:
        """Read one column of all objects, (n,); so one column is in memory, whatever their number."""
        pieces = [piece[name] for piece in self.read(("label", name))]
        return np.concatenate(pieces) if pieces else np.zeros(0)


class Places(NamedTuple):
    """Where objects lie.

    Attributes:
        density: Counts in cells of round sides, for the map.
        windows: Counts in cells of a crop's size.
        seams: Counts of objects in several blocks, where these meet.
        disputed: Counts of disputed objects in cells of a crop's size; None = that isn't known.
    """

    density: DensityMap
    windows: DensityMap
    seams: SeamCounts
    disputed: DensityMap | None


def find_places(values: ObjectValues, grid: BlockGrid, side: int) -> Places:
    """Find where objects lie, in one pass over them.

    Args:
        values: The objects.
        grid: The blocks on level 0.
        side: Of the map's cells, in pixels.
    """
    has_disputed = "disputed" in values.names
    found = Places(
        DensityMap.empty(grid.shape, side),
        DensityMap.empty(grid.shape, SIDE),
        SeamCounts(grid),
        DensityMap.empty(grid.shape, SIDE) if has_disputed else None,
    )
    for piece in values.read(("label", "centroid-0", "centroid-1", "blocks", *["disputed"] * has_disputed)):
        y, x = piece["centroid-0"], piece["centroid-1"]
        found.density.add(y, x)
        found.windows.add(y, x)
        found.seams.add(y, x, piece["blocks"])
        if found.disputed is not None:
            is_disputed = piece["disputed"].astype(bool)
            found.disputed.add(y[is_disputed], x[is_disputed])
    return found


def group_areas(values: ObjectValues, by: Sequence[str], area: str) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Return the areas, (n,) each, of the objects that share their values of some columns, by these values.

    Args:
        values: The objects.
        by: The columns, of words.
        area: Name of the column of areas.
    """
    found: dict[tuple[str, ...], list[NDArray[Any]]] = {}
    for piece in values.read(("label", *by, area)):
        words = np.stack([piece[name].astype(str) for name in by], axis=1)
        names, places = np.unique(words, axis=0, return_inverse=True)
        for place, name in enumerate(names.tolist()):
            found.setdefault(tuple(name), []).append(piece[area][places.ravel() == place])
    return {name: np.concatenate(found[name]) for name in sorted(found)}
