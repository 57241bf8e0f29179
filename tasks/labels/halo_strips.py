"""Halo strips: a block's labels along the edges that it shares, all that its neighbours read of it. One file per block.

A strip is as wide as the overlap of two blocks, so twice the halo: all seams are compared, and all neighbours painted, from
strips. The files are called frames.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.labels.kernels import View
from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.run.run import Run

# Decoded strips that stay in memory, by blocks and bytes: enough for the rows around a block in a batch of blocks.
_CACHED_BLOCKS, _CACHED_BYTES = 32, 192 * 2**20
# What Blosc compresses at once.
_LARGEST_BYTES = int(blosc.MAX_BUFFERSIZE)


class Strip(NamedTuple):
    """A block's labels along one edge.

    Attributes:
        region: Where on the slide they lie.
        labels: (y, x) uint32 local labels of the block.
    """

    region: Region
    labels: NDArray[np.uint32]


class HaloStrips:
    """Read the blocks' halo strips; the latest stay in memory.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._results = run, BlockResults.of(run)
        self._cache: OrderedDict[int, list[Strip]] = OrderedDict()

    def view(self, block: Block, region: Region) -> View:
        """Return a block's labels on a region that it sees: from a strip if the region lies in one, else from its result.

        Raises:
            OutputError: The file is damaged, and removed, so that the block is segmented again; or gone.
        """
        # The inner region never lies in a strip, so that strips needn't be loaded for it.
        for strip in () if region == block.inner else self._strips(block):
            if strip.region & region == region:
                return View(strip.labels, region.relative_to(strip.region)[:2])
        return View(self._results.read(block, region))

    def _strips(self, block: Block) -> list[Strip]:
        if block.block_id in self._cache:
            self._cache.move_to_end(block.block_id)
            return self._cache[block.block_id]
        strips = load_strips(self._run, block)
        self._cache[block.block_id] = strips
        size = max(1, sum(strip.labels.nbytes for strip in strips))
        while len(self._cache) > max(1, min(_CACHED_BLOCKS, _CACHED_BYTES // size)):
            self._cache.popitem(last=False)
        return strips


def save_strips(run: Run, block: Block, labels: NDArray[np.uint32]) -> None:
    """Write a block's halo strips from its (y, x) labels of the outer region."""
    strips = [labels[region.relative_to(block.outer).slices].ravel() for region in place_strips(run.grid, block)]
    pixels = np.concatenate([np.zeros(0, np.uint32), *strips])
    data: bytes = blosc.compress(pixels, b"lz4hc", 5, blosc.SHUFFLE) if pixels.size else b""
    write_atomic(run.segment_folder.frame(block.block_id), zlib.crc32(data).to_bytes(4, "little") + data)


def load_strips(run: Run, block: Block) -> list[Strip]:
    """Load a block's halo strips.

    Raises:
        OutputError: The file is damaged; it is removed, so that the block is segmented again.
    """
    regions = place_strips(run.grid, block)
    sizes = [region.shape[0] * region.shape[1] for region in regions]
    pixels = np.empty(sum(sizes), np.uint32)
    path = run.segment_folder.frame(block.block_id)
    try:
        data = path.read_bytes()
        if int.from_bytes(data[:4], "little") != zlib.crc32(data[4:]):
            raise ValueError("checksum differs")
        if pixels.size:
            blosc.decompress(data[4:], pixels)
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error
    columns = np.split(pixels, np.cumsum(sizes)[:-1]) if regions else []
    return [Strip(region, column.reshape(region.shape)) for region, column in zip(regions, columns, strict=True)]


def place_strips(grid: BlockGrid, block: Block) -> list[Region]:
    """Return where on the slide a block's strips lie: along each edge of its outer region inside the slide.

    There are none where strips would take more room than the block has, or more than Blosc compresses: neighbours then read the
    block's result.
    """
    outer, width = block.outer, 2 * grid.halo
    if 2 * width > min(outer.shape):
        return []
    strips = (
        (outer.y0 > 0, outer._replace(y1=outer.y0 + width)),
        (outer.y1 < grid.shape[0], outer._replace(y0=outer.y1 - width)),
        (outer.x0 > 0, outer._replace(x1=outer.x0 + width)),
        (outer.x1 < grid.shape[1], outer._replace(x0=outer.x1 - width)),
    )
    regions = [strip for is_inside, strip in strips if is_inside and width]
    n_pixels = sum(region.shape[0] * region.shape[1] for region in regions)
    return regions if n_pixels * np.dtype(np.uint32).itemsize <= _LARGEST_BYTES else []
