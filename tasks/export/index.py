"""Which objects a slide has, where, and which tile of the slide describes each.

An object is described whole, in one task, from a window that holds all of its pixels. So nothing is added up over borders, and
what a table says doesn't depend on blocks or tasks. The window follows from the object's box, which is added up from what blocks
show of the object: painting has measured that, and where its files are gone the label image is read once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.labels.parts import add_up_parts, measure_parts
from slidesam.tasks.run.array_files import ArrayFile, load_arrays, read_array_facts, write_arrays
from slidesam.tasks.run.run import Run, batches
from slidesam.tasks.run.stage_folders import ObjectFolder
from slidesam.tasks.stitch.batches import Batch, batch_name, block_batches, is_painted, resolve_run
from slidesam.tasks.stitch.numbering import read_seam_facts
from slidesam.tasks.stitch.report import SeamFacts
from slidesam.tasks.store.arrays import open_levels, read_region

Ints = NDArray[np.int64]
# Of what files of the objects hold. Another number makes them anew.
_VERSION = 2
# Objects whose box begins in one tile are described together.
_TILE = (2048, 2048)
# A task describes so many tiles at least and at most, in between such that there are some tasks: each leaves a file.
_FEWEST_TILES, _MOST_TILES, _WANTED_TASKS = 4, 16, 16
OutlineForm = Literal["features", "polygons"]
"""How outlines are described: text of GeoJSON, or WKB."""
ROWS = "described"
"""The part of the object folder that holds the rows of the table."""
COLUMN = "column "
"""Begins the names of its arrays."""


class ObjectIndex(NamedTuple):
    """The objects that one tile describes.

    Attributes:
        ids: (n,) ids in the label image, ascending.
        boxes: (n, 4) y0, x0, y1, x1 on level 0, half open.
        area: (n,) pixels.
        blocks: (n,) how many blocks show a part of the object.
        fragments: (n,) of how many fragments it is put together; NaN = not known any more.
        disputed: (n,) 1 where blocks disagree on it at a seam; NaN = not known any more.
    """

    ids: Ints
    boxes: Ints
    area: Ints
    blocks: Ints
    fragments: NDArray[np.float64]
    disputed: NDArray[np.float64]


def object_folder(run: Run) -> ObjectFolder:
    """Return the folder of what the files of the objects are made from."""
    name = hashlib.sha256(f"{run.fingerprints['export']} {_VERSION}".encode()).hexdigest()[:12]
    return ObjectFolder(run.paths.work / f"objects-{name}")


def outline_part(run: Run, form: OutlineForm) -> str:
    """Name the part of the object folder that holds outlines in a form; those of each tolerance lie apart."""
    tolerance = run.settings.output.simplify
    return f"{form}-{tolerance}" if tolerance else form


def cut_into_tiles(run: Run) -> BlockGrid:
    """Cut level 0 into the tiles whose objects are described together; the same ones for blocks of any size."""
    return BlockGrid(run.grid.shape, _TILE, 0)


def tile_batches(run: Run) -> list[Batch]:
    """Return the ids of the tiles that each task describes."""
    n_tiles = len(cut_into_tiles(run))
    return list(batches(range(n_tiles), min(_MOST_TILES, max(_FEWEST_TILES, n_tiles // _WANTED_TASKS))))


def batches_to_measure(run: Run) -> list[Batch]:
    """Return the batches of blocks whose parts of objects aren't known: painting's files are gone."""
    return [batch for batch in block_batches(run) if not is_painted(run, batch) and not _is_measured(run, batch)]


def measure_batch(run: Run, batch: Batch) -> None:
    """Measure what the blocks of a batch show of objects, from the label image.

    Raises:
        DamagedError: A shard of the label image is damaged.
    """
    if _is_measured(run, batch):
        return
    level = open_levels(run.paths.label_image, run.settings.image.ome_zarr)[0]
    parts = [measure_parts(read_region(level, block.inner), block.inner) for block in map(run.grid.__getitem__, batch)]
    write_arrays(object_folder(run).part("parts", batch_name(batch)), {"measures": np.concatenate(parts)})


def _is_measured(run: Run, batch: Batch) -> bool:
    return read_array_facts(object_folder(run).part("parts", batch_name(batch))) is not None


def write_index(run: Run) -> int:
    """Add up the parts of each object, unless that is done.

    Returns:
        The number of objects.

    Raises:
        DamagedError: What blocks show of objects is damaged or gone.
    """
    path = object_folder(run).index
    facts = read_array_facts(path)
    if facts is not None:
        return int(facts["objects"])
    found = add_up_parts(np.concatenate([_read_parts(run, batch) for batch in block_batches(run)]))
    columns: dict[str, NDArray[Any]] = {
        "ids": found.ids, "boxes": found.boxes, "area": found.area, "blocks": found.parts, **_find_seam_facts(run, found.ids),
    }  # fmt: skip
    tiles = cut_into_tiles(run)
    tile_ids = found.boxes[:, 0] // _TILE[0] * tiles.grid_shape[1] + found.boxes[:, 1] // _TILE[1]
    order = np.argsort(tile_ids, kind="stable")
    begins = np.searchsorted(tile_ids[order], np.arange(len(tiles) + 1))
    columns = {name: column[order] for name, column in columns.items()}
    write_arrays(path, {"begins": begins, **columns}, {"objects": len(order)})
    return len(order)


def _find_seam_facts(run: Run, ids: Ints) -> dict[str, NDArray[np.float64]]:
    """Find how seams treat objects: from their numbering, which is made again where it is gone and its blocks are there."""
    facts = None
    # Where they are cleaned up, that isn't known any more.
    if run.segment_folder.params.exists():
        resolve_run(run)
        facts = read_seam_facts(run, ids)
    unknown = np.full(ids.size, np.nan)
    return {name: unknown if facts is None else getattr(facts, name).astype(np.float64) for name in SeamFacts._fields}


def _read_parts(run: Run, batch: Batch) -> Ints:
    """Read (n, 8) id, area, sums of y and x, and box of the parts of objects."""
    name = batch_name(batch)
    own = object_folder(run).part("parts", name)
    path = own if read_array_facts(own) is not None else run.paint_folder.measures(name)
    return np.asarray(load_arrays(path)["measures"], np.int64)


def read_index(run: Run, tile_ids: Batch) -> Iterator[ObjectIndex]:
    """Read the objects of tiles that follow each other, tile by tile.

    Raises:
        DamagedError: The index is damaged or gone.
    """
    file = ArrayFile(object_folder(run).index)
    begins = file.read("begins", tile_ids[0], tile_ids[-1] + 2)
    for begin, end in pairwise(begins.tolist()):
        yield ObjectIndex(*(file.read(name, begin, end) for name in ObjectIndex._fields))


def cover(boxes: Ints) -> Region:
    """Return the smallest region that holds all boxes."""
    y0, x0 = boxes[:, :2].min(axis=0).tolist()
    y1, x1 = boxes[:, 2:].max(axis=0).tolist()
    return Region(y0, x0, y1, x1)
