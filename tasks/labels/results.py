"""Results of the blocks on disk: local labels in one Zarr array, and per block what neighbours need to know of it.

segment-<fingerprint>/blocks.zarr            (block, y, x) local labels, one shard file per block
segment-<fingerprint>/objects/<block_id>.npy   what a block knows about its objects
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.labels.kernels import View
from slidesam.tasks.labels.objects import ObjectTable
from slidesam.tasks.run.files import save_array, write_atomic
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.ome_zarr import FAST

# Side of the chunks inside a block's result: what a seam reads at least.
_CHUNK = 128
# What is kept of frames that are decoded: enough for the rows around a block in a group of blocks.
_KEPT_FRAMES, _KEPT_BYTES = 32, 192 * 2**20


def create_results(path: Path, grid: BlockGrid) -> None:
    """Makes the empty array of block results.

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
        """A run's results."""
        return cls(run.segment_folder.blocks, run.grid)

    @classmethod
    def create(cls, run: Run) -> BlockResults:
        """A run's results, whose array is made if it isn't there."""
        path = run.segment_folder.blocks
        if not (path / "zarr.json").exists():
            create_results(path, run.grid)
        return cls.of(run)

    def write(self, block: Block, labels: NDArray[np.uint32]) -> None:
        """Stores a block's (y, x) labels of its outer region."""
        whole = np.zeros(self.array.shape[1:], np.uint32)
        whole[: labels.shape[0], : labels.shape[1]] = labels
        # Through zarr itself, which writes beside and renames, so that a killed worker leaves no half shard.
        with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
            zarr.open_array(self.array.store_path, mode="r+")[block.block_id] = whole
        shard = self._shard(block.block_id)
        if shard.exists():
            # Before the mark that vouches for it.
            with shard.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self, block: Block, region: Region) -> NDArray[np.uint32]:
        """Labels of a block that has objects, on a region of the slide that lies inside its outer region, (y, x) uint32.

        Raises:
            OutputError: Its shard is damaged, and removed, so that the block is segmented anew; or gone.
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


class Frames:
    """What neighbours need of a block, apart from the rest: its labels along the edges that it shares with them.

    As wide as the overlap, so twice the halo, on each side where the slide goes on: all seams are compared, and all
    neighbours painted, from these. The latest are kept in memory.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._results = run, BlockResults.of(run)
        self._kept: OrderedDict[int, list[tuple[Region, NDArray[np.uint32]]]] = OrderedDict()

    def view(self, block: Block, region: Region) -> View:
        """A block's labels on a region that it sees: a part of its frame if it lies there, else read from its result."""
        # The inner region never lies in a strip, so that strips needn't be loaded for it.
        for place, labels in () if region == block.inner else self._strips(block):
            if place & region == region:
                return View(labels, region.relative_to(place)[:2])
        return View(self._results.read(block, region))

    def _strips(self, block: Block) -> list[tuple[Region, NDArray[np.uint32]]]:
        """The parts of a block's frame, and where on the slide they lie."""
        if block.block_id in self._kept:
            self._kept.move_to_end(block.block_id)
            return self._kept[block.block_id]
        strips = load_frame(self._run, block)
        self._kept[block.block_id] = strips
        size = max(1, sum(labels.nbytes for _, labels in strips))
        while len(self._kept) > max(1, min(_KEPT_FRAMES, _KEPT_BYTES // size)):
            self._kept.popitem(last=False)
        return strips


def save_frame(run: Run, block: Block, labels: NDArray[np.uint32]) -> None:
    """Writes a block's frame from its (y, x) labels of the outer region."""
    strips = [labels[place.relative_to(block.outer).slices].ravel() for place in _places(run.grid, block)]
    pixels = np.concatenate([np.zeros(0, np.uint32), *strips])
    data: bytes = blosc.compress(pixels, b"lz4hc", 5, blosc.SHUFFLE) if pixels.size else b""
    write_atomic(_frame_path(run, block.block_id), zlib.crc32(data).to_bytes(4, "little") + data)


def load_frame(run: Run, block: Block) -> list[tuple[Region, NDArray[np.uint32]]]:
    """The parts of a block's frame, and where on the slide they lie.

    Raises:
        OutputError: It is damaged; it is removed, so that the block is segmented anew.
    """
    places = _places(run.grid, block)
    sizes = [place.shape[0] * place.shape[1] for place in places]
    pixels = np.empty(sum(sizes), np.uint32)
    path = _frame_path(run, block.block_id)
    try:
        data = path.read_bytes()
        if int.from_bytes(data[:4], "little") != zlib.crc32(data[4:]):
            raise ValueError("checksum differs")
        if pixels.size:
            blosc.decompress(data[4:], pixels)
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error
    parts = np.split(pixels, np.cumsum(sizes)[:-1]) if places else []
    return [(place, part.reshape(place.shape)) for place, part in zip(places, parts, strict=True)]


def _places(grid: BlockGrid, block: Block) -> list[Region]:
    """Where a block's frame lies on the slide: a strip along each edge of its outer region inside the slide.

    None where strips would take more room than the block has.
    """
    outer, wide = block.outer, 2 * grid.halo
    if 2 * wide > min(outer.shape):
        return []
    strips = (
        (outer.y0 > 0, outer._replace(y1=outer.y0 + wide)),
        (outer.y1 < grid.shape[0], outer._replace(y0=outer.y1 - wide)),
        (outer.x0 > 0, outer._replace(x1=outer.x0 + wide)),
        (outer.x1 < grid.shape[1], outer._replace(x0=outer.x1 - wide)),
    )
    return [strip for inside, strip in strips if inside and wide]


def _frame_path(run: Run, block_id: int) -> Path:
    return run.segment_folder.frame(block_id)


def save_table(run: Run, block_id: int, table: ObjectTable) -> None:
    """Writes what a block knows about its objects."""
    save_array(_table_path(run, block_id), table.packed())


def load_table(run: Run, block_id: int) -> ObjectTable:
    """What a block knows about its objects.

    Raises:
        OutputError: It is damaged.
    """
    path = _table_path(run, block_id)
    try:
        return ObjectTable.unpacked(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error


def _table_path(run: Run, block_id: int) -> Path:
    return run.segment_folder.objects(block_id)
