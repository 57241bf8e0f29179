"""Results of the blocks on disk: local labels in one Zarr array, a table of objects per block.

segment-<fingerprint>/blocks.zarr            (block, y, x) local labels, one shard file per block
segment-<fingerprint>/objects/<block_id>.npz   what a block knows about its objects
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.kernels import View
from slidesam.tasks.objects import ObjectTable
from slidesam.tasks.omezarr import FAST
from slidesam.tasks.work import Run, load_arrays, save_arrays

# Side of the chunks inside a block's result: what a seam reads at least.
_CHUNK = 256
# What a reader keeps of the blocks that it has decoded.
_KEPT_BYTES = 192 * 2**20


def create_results(path: Path, grid: BlockGrid) -> None:
    """Makes the empty array of block results.

    Written once and read twice, by tasks that do little else: of Blosc's codecs this one decodes fastest, into half of
    zstd's size.
    """
    height, width = (-(-size // _CHUNK) * _CHUNK for size in grid.outer_shape)
    zarr.create_array(
        path,
        shape=(len(grid), height, width),
        shards=(1, height, width),
        chunks=(1, _CHUNK, _CHUNK),
        dtype="uint32",
        compressors=[BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle")],
        overwrite=True,
    )


class BlockResults:
    """Local labels of all blocks: one Zarr array of (block, y, x), one shard file per block, written whole by one task.

    A block's labels start at (0, 0) with its clipped outer region. A block without objects has no file: its done-mark
    alone says that it was computed.

    Args:
        path: The array.
        grid: The blocks.
        whole: Blocks that will be asked for more than once: they are decoded whole and the latest kept in memory; of
        all others
            only the chunks asked for are decoded, each time.
    """

    def __init__(self, path: Path, grid: BlockGrid, whole: Collection[int] = ()) -> None:
        self.grid = grid
        with zarr.config.set(FAST):
            self.array: zarr.Array[Any] = zarr.open_array(path, mode="r+")
        self._whole = frozenset(whole)
        self._kept: OrderedDict[int, NDArray[np.uint32]] = OrderedDict()

    @classmethod
    def of(cls, run: Run, whole: Collection[int] = ()) -> BlockResults:
        """A run's results."""
        return cls(run.segment_folder / "blocks.zarr", run.grid, whole)

    @classmethod
    def create(cls, run: Run) -> BlockResults:
        """A run's results, whose array is made if it isn't there."""
        path = run.segment_folder / "blocks.zarr"
        if not (path / "zarr.json").exists():
            create_results(path, run.grid)
        return cls.of(run)

    def write(self, block: Block, labels: NDArray[np.uint32]) -> None:
        """Stores a block's (y, x) labels of its outer region."""
        whole = np.zeros(self.array.shape[1:], np.uint32)
        whole[: labels.shape[0], : labels.shape[1]] = labels
        with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
            # Through zarr itself, which writes beside and renames, so that a killed worker leaves no half shard.
            zarr.open_array(self.array.store_path, mode="r+")[block.block_id] = whole

    def read(self, block: Block, region: Region) -> NDArray[np.uint32]:
        """A block's labels on a region of the slide that lies inside its outer region, (y, x) uint32."""
        labels, (y, x) = self.view(block, region)
        return labels[y : y + region.shape[0], x : x + region.shape[1]]

    def view(self, block: Block, region: Region) -> View:
        """The same without a copy, for what is compiled."""
        inside = region.relative_to(block.outer)
        if block.block_id not in self._whole:
            return View(np.asarray(self.array[(block.block_id, *inside.slices)], np.uint32))
        return View(self._labels(block.block_id), (inside.y0, inside.x0))

    def _labels(self, block_id: int) -> NDArray[np.uint32]:
        """A block's labels, whole, decoded or still at hand."""
        if block_id in self._kept:
            self._kept.move_to_end(block_id)
            return self._kept[block_id]
        labels = np.asarray(self.array[block_id], np.uint32)
        self._kept[block_id] = labels
        # Two rows of a square group, which is all that its next block can ask for.
        wanted = 2 * math.isqrt(len(self._whole)) + 3
        while len(self._kept) > max(1, min(wanted, _KEPT_BYTES // labels.nbytes)):
            self._kept.popitem(last=False)
        return labels


def save_table(run: Run, block_id: int, table: ObjectTable) -> None:
    """Writes what a block knows about its objects."""
    save_arrays(_table_path(run, block_id), table._asdict())


def load_table(run: Run, block_id: int) -> ObjectTable:
    """What a block knows about its objects.

    Raises:
        OutputError: It is damaged.
    """
    return ObjectTable(**load_arrays(_table_path(run, block_id)))


def _table_path(run: Run, block_id: int) -> Path:
    return run.segment_folder / "objects" / f"{block_id}.npz"
