"""patchworks: `tile_process`, as its documentation shows it: halos are trimmed, labels that touch at a seam are joined.

Two threads (`max_workers=2`). Adapted: the image is a lazy dask array of block ids. Dask widens the last tile where it
would be thinner than the halo; that is no block of the case, and refused.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import patchworks
from numpy.typing import NDArray

from benchmarks.stitching.adapters._lookup import labels_of
from benchmarks.stitching.case import Case

DISTRIBUTION = "patchworks"
LABEL = "labels"


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with patchworks, joining what touches.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    process(case, out)


def process(case: Case, out: Path, **options: Any) -> None:
    """Runs `tile_process` on a case.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
        **options: More arguments for `tile_process`.
    """
    store = out.with_name(out.name + ".patchworks.zarr")
    patchworks.tile_process(
        _ids(case),
        partial(_segment, case),
        tile_shape=case.block_shape,
        overlap=case.halo,
        write_to=store,
        output_component=LABEL,
        max_workers=2,
        progress=False,
        **options,
    )
    shutil.move(store / LABEL, out)
    shutil.rmtree(store)


def _segment(case: Case, ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """A block's labels as int32, the type that patchworks works in."""
    return labels_of(case, ids).astype(np.int32)


def _ids(case: Case) -> da.Array:
    """(y, x) the id of the block that owns each pixel."""

    def fill(block_info: Any = None) -> NDArray[np.int32]:
        place = block_info[None]
        block_id = int(np.ravel_multi_index(place["chunk-location"], case.grid_shape))
        return np.full(place["chunk-shape"], block_id, np.int32)

    chunks = da.core.normalize_chunks(case.block_shape, case.shape)
    return da.map_blocks(fill, chunks=chunks, dtype=np.int32, meta=np.empty((0, 0), np.int32))
