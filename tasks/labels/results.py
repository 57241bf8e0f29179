"""Results of the blocks on disk: local labels in one Zarr array, and a table of objects per block.

`halo_strips` writes what neighbours read of the labels, and `tasks.segment.loop` the done-mark, last of all.

segment-<fingerprint>/blocks.zarr            (block, y, x) local labels, one shard file per block
segment-<fingerprint>/objects/<block_id>.npy   what a block knows about its objects
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.labels.objects import ObjectTable
from slidesam.tasks.run.files import save_array
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.ome_zarr import FAST

# Side of the chunks inside a block's result: the least that is read at a seam.
_CHUNK = 128


def create_results(path: Path, grid: BlockGrid) -> None:
    """Create the empty array of block results.

    Written once, by a task that takes seconds, and read by one that does little else: this codec decodes fastest.
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
    """

    def __init__(self, path: Path, grid: BlockGrid) -> None:
        self.grid, self._path = grid, path
        with zarr.config.set(FAST):
            self.array: zarr.Array[Any] = zarr.open_array(path, mode="r+")

    @classmethod
    def of(cls, run: Run) -> BlockResults:
        """Open a run's results."""
        return cls(run.segment_folder.blocks, run.grid)

    @classmethod
    def create(cls, run: Run) -> BlockResults:
        """Open a run's results; create the array if it isn't there."""
        path = run.segment_folder.blocks
        if not (path / "zarr.json").exists():
            create_results(path, run.grid)
        return cls.of(run)

    def write(self, block: Block, labels: NDArray[np.uint32]) -> None:
        """Write a block's (y, x) labels of its outer region."""
        padded = np.zeros(self.array.shape[1:], np.uint32)
        padded[: labels.shape[0], : labels.shape[1]] = labels
        # Through zarr itself, which writes beside and renames, so that a killed worker leaves no half shard.
        with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
            zarr.open_array(self.array.store_path, mode="r+")[block.block_id] = padded
        shard = self._shard(block.block_id)
        if shard.exists():
            # Before the mark that vouches for it.
            with shard.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self, block: Block, region: Region) -> NDArray[np.uint32]:
        """Read labels of a block that has objects, on a region of the slide that lies inside its outer region, (y, x) uint32.

        Raises:
            OutputError: Its shard is damaged, and removed, so that the block is segmented again; or gone.
        """
        inside, shard = region.relative_to(block.outer), self._shard(block.block_id)
        if not shard.exists():
            raise OutputError(f"{shard} is gone: run the same command again")
        try:
            return np.asarray(self.array[(block.block_id, *inside.slices)], np.uint32)
        except (RuntimeError, ValueError) as error:
            shard.unlink(missing_ok=True)
            raise OutputError(f"{shard} is damaged and was removed: run the same command again") from error

    def _shard(self, block_id: int) -> Path:
        return self._path / "c" / str(block_id) / "0" / "0"


def save_table(run: Run, block_id: int, table: ObjectTable) -> None:
    """Write the table of a block's objects."""
    save_array(run.segment_folder.objects(block_id), table.packed())


def load_table(run: Run, block_id: int) -> ObjectTable:
    """Load the table of a block's objects.

    Raises:
        OutputError: It is damaged; it is removed, so that the block is segmented again.
    """
    path = run.segment_folder.objects(block_id)
    try:
        return ObjectTable.unpacked(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error
