"""dask-image: how `dask_image.ndmeasure.label` merges its blocks, a floor: what touches across a face is one object.

`label` itself takes a mask and labels each block by connected components; here the blocks come labelled, so the
functions behind it are called (`ndmeasure._utils._label`, private, but what others build on too). Their face labelling
also joins neighbours on the same side of a face, so touching cells become one. The halo is trimmed first. Dask's
threads, two of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask_image.ndmeasure._utils import _label
from numpy.typing import NDArray

from benchmarks.stitching.case import Case

DISTRIBUTION = "dask-image"


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with dask-image.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    firsts = np.cumsum([0, *(int(block.max()) for block in case.all_labels())])
    labels = _inner_labels(case, firsts)
    target = zarr.create_array(out, shape=case.shape, chunks=case.block_shape, dtype=_label.LABEL_DTYPE)
    with dask.config.set(scheduler="threads", num_workers=2):
        groups = _label.label_adjacency_graph(labels, None, dask.delayed(int(firsts[-1])))
        stitched = _label.relabel_blocks(labels, _label.connected_components_delayed(groups))
        da.store(stitched, target, lock=False)


def _inner_labels(case: Case, firsts: NDArray[np.int64]) -> da.Array:
    """(y, x) the labels of the inner regions, unique across blocks."""

    def load(block_info: Any = None) -> NDArray[np.int32]:
        block_id = int(np.ravel_multi_index(block_info[None]["chunk-location"], case.grid_shape))
        inside = tuple(
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(case.inner(block_id), case.outer(block_id), strict=True)
        )
        block = case.labels(block_id)[inside].astype(_label.LABEL_DTYPE)
        block[block > 0] += _label.LABEL_DTYPE.type(firsts[block_id])
        return block

    chunks = da.core.normalize_chunks(case.block_shape, case.shape)
    return da.map_blocks(load, chunks=chunks, dtype=_label.LABEL_DTYPE, meta=np.empty((0, 0), _label.LABEL_DTYPE))
