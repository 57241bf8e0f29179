"""ngio: `SegmentationIterator(...).by_grid(...).with_halo(...).with_stitch()`, its documented way to stitch tiles.

Its defaults: labels match at IoU >= 0.3 on the pixels that two tiles both read (corners included), union-find, ids
compacted. Blocks run in two threads (`ThreadedMapper(2)`); the matching and relabelling (`finalize`, which `segment`
calls) are serial. Adapted: ngio reads its image from an OME-Zarr, so one is made whose pixels hold block ids (constant
chunks, which cost next to nothing); no pyramid is built; the label's level 0 is moved to `out`. More than 9999 labels
in a block need larger id blocks.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import zarr
from ngio import Image, create_empty_ome_zarr
from ngio.iterators import SegmentationIterator, StitchConfig, ThreadedMapper

from benchmarks.stitching.adapters._lookup import labels_of
from benchmarks.stitching.case import Case

DISTRIBUTION = "ngio"
LABEL = "stitched"


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with ngio.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    store = out.with_name(out.name + ".ngio.zarr")
    container = create_empty_ome_zarr(
        store,
        shape=case.shape,
        pixelsize=1.0,
        levels=1,
        axes_names=("y", "x"),
        ngff_version="0.5",
        dtype="uint32",
        chunks=case.block_shape,
        overwrite=True,
    )
    image = container.get_image()
    _write_ids(case, image)
    label = container.derive_label(LABEL, ref_image=image, dtype="uint32", chunks=case.block_shape)
    y, x = case.block_shape
    (
        SegmentationIterator(image, label)
        .by_grid(size_y=y, size_x=x)
        .with_halo(y=case.halo, x=case.halo)
        .with_stitch(StitchConfig())
        .segment(partial(labels_of, case), mapper=ThreadedMapper(2))
    )
    shutil.move(store / "labels" / LABEL / label.path, out)
    shutil.rmtree(store)


def _write_ids(case: Case, image: Image) -> None:
    """Gives each pixel the id of the block that owns it."""
    array: zarr.Array[Any] = image.zarr_array
    for block_id in range(len(case)):
        array[case.inner(block_id)] = block_id
