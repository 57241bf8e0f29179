"""bioimage-py: `segmentation.stitch_segmentation`, its tile-wise segmentation stitched by a multicut over the overlaps.

Its defaults: beta 0.5, `job_type="local"`, which keeps every block's labels in memory as uint64; `num_workers=2`
threads for the blocks and the overlap counts (the region graph takes every core, the multicut one). It passes the
block's id, so the image may be empty. Overlaps are counted between face neighbours; blocks, halo and clipping at the
edge are the case's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from bioimage_py.segmentation import stitch_segmentation
from numpy.typing import NDArray

from benchmarks.stitching.case import Case

DISTRIBUTION = "bioimage-py"


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with bioimage-py.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """

    def segment(image: NDArray[np.uint8], block_id: int) -> NDArray[np.uint32]:
        labels = case.labels(block_id)
        if labels.shape != image.shape:
            raise ValueError(f"block {block_id} was to be {image.shape} and is {labels.shape}")
        return labels

    stitch_segmentation(
        np.broadcast_to(np.uint8(0), case.shape),
        segment,
        tile_shape=case.block_shape,
        tile_overlap=(case.halo, case.halo),
        output=zarr.create_array(out, shape=case.shape, chunks=case.block_shape, dtype="uint64"),
        num_workers=2,
    )
