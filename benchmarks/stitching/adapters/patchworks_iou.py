"""patchworks: `tile_process(stitch="iou")`: labels are joined where both tiles agree on the overlap (IoU >= 0.5).

The threshold is its default. Two threads; see `patchworks` for the rest.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.stitching.adapters.patchworks import DISTRIBUTION as DISTRIBUTION
from benchmarks.stitching.adapters.patchworks import process
from benchmarks.stitching.case import Case


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with patchworks, joining what agrees.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    process(case, out, stitch="iou")
