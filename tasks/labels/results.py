"""The result of a block on disk: one file with its labels, its table of objects and its halo strips.

segment-<fingerprint>/blocks/<block_id>.arrays
    facts      the done-mark: `BlockMark`
    core       (y, x) uint32 local labels of the inner region, or of the outer one where there are no strips
    strips     (n,) uint32 pixels of the halo strips, one strip after the other
    objects    (n,) int32 what the block knows about its objects
    votes      (n, 2, classes) float64 what votes for which class of each object (`count_votes`), if it gets one

A block without objects has the facts alone. The file is renamed into its place when it is whole and on the disk, so no moment
has a part of a result, or a result that isn't vouched for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Block, Region
from slidesam.tasks.labels.halo_strips import Strip, cut_strips, join_strips, place_core
from slidesam.tasks.labels.kernels import View
from slidesam.tasks.labels.objects import ObjectTable
from slidesam.tasks.run.array_files import SMALL, ArrayFile, write_arrays
from slidesam.tasks.run.records import BlockMark
from slidesam.tasks.run.run import Run

# Decoded strips that stay in memory, by blocks and bytes: enough for the rows around a block in a batch of blocks.
_CACHED_BLOCKS, _CACHED_BYTES = 32, 192 * 2**20


def save_block(
    run: Run,
    block: Block,
    labels: NDArray[np.uint32],
    table: ObjectTable,
    mark: BlockMark,
    votes: NDArray[np.float64] | None = None,
) -> None:
    """Write a block's result; from now on the block is done.

    Args:
        run: The run.
        block: The block.
        labels: (y, x) local labels of its outer region, ids 1..n.
        table: Its n objects.
        mark: What vouches for it.
        votes: (n, 2, classes) votes on their classes, see `count_votes`.

    Raises:
        OutputError: It can't be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    if table.area.size:
        core = place_core(run.grid, block).relative_to(block.outer)
        strips = cut_strips(run.grid, block, labels)
        arrays = {"core": labels[core.slices], "strips": strips, "objects": table.packed()}
        if votes is not None:
            arrays["votes"] = votes
    write_arrays(run.segment_folder.block(block.block_id), arrays, mark.to_json(), SMALL)


class BlockResults:
    """Read the blocks' results; the latest halo strips stay in memory.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._files: dict[int, ArrayFile] = {}
        self._strips: OrderedDict[int, list[Strip]] = OrderedDict()

    def count(self, block_id: int) -> int:
        """Return the number of a segmented block's objects.

        Raises:
            DamagedError: The block's result is damaged, and removed, so that the block is segmented again; or gone.
        """
        return int(self._file(block_id).facts["count"])

    def table(self, block_id: int) -> ObjectTable:
        """Return the table of a segmented block's objects.

        Raises:
            DamagedError: See `count`.
        """
        file = self._file(block_id)
        return ObjectTable.unpacked(file.read("objects")) if file.facts["count"] else ObjectTable.empty()

    def votes(self, block_id: int) -> NDArray[np.float64]:
        """Return (n, 2, classes) votes on the classes of a block's objects, of a block that has some; see `count_votes`.

        Raises:
            DamagedError: See `count`.
        """
        return self._file(block_id).read("votes")

    def view(self, block: Block, region: Region) -> View:
        """Return the labels of a block that has objects, on a region that it sees: of a strip in memory where it lies in one.

        Raises:
            DamagedError: See `count`.
        """
        # The core never lies in a strip, so that strips needn't be loaded for it.
        for strip in () if region == block.inner else self._load_strips(block):
            if strip.region & region == region:
                return View(strip.labels, region.relative_to(strip.region)[:2])
        return View(self.read(block, region))

    def read(self, block: Block, region: Region) -> NDArray[np.uint32]:
        """Read the (y, x) labels of a segmented block on a region of the slide that lies inside its outer region.

        Raises:
            DamagedError: See `count`.
        """
        core, file = place_core(self._run.grid, block), self._file(block.block_id)
        labels = np.zeros(region.shape, np.uint32)
        if not file.facts["count"]:
            return labels
        shared = region & core
        if not shared.is_empty:
            rows = file.read("core", shared.y0 - core.y0, shared.y1 - core.y0)
            if region == core:
                return rows
            _copy(Strip(Region(shared.y0, core.x0, shared.y1, core.x1), rows), region, labels)
        if shared != region:
            for strip in self._load_strips(block):
                _copy(strip, region, labels)
        return labels

    def _file(self, block_id: int) -> ArrayFile:
        if block_id not in self._files:
            self._files[block_id] = ArrayFile(self._run.segment_folder.block(block_id))
        return self._files[block_id]

    def _load_strips(self, block: Block) -> list[Strip]:
        if block.block_id in self._strips:
            self._strips.move_to_end(block.block_id)
            return self._strips[block.block_id]
        strips = join_strips(self._run.grid, block, self._file(block.block_id).read("strips"))
        self._strips[block.block_id] = strips
        size = max(1, sum(strip.labels.nbytes for strip in strips))
        while len(self._strips) > max(1, min(_CACHED_BLOCKS, _CACHED_BYTES // size)):
            self._strips.popitem(last=False)
        return strips


def _copy(source: Strip, region: Region, labels: NDArray[np.uint32]) -> None:
    """Copy what a strip shows of a region to the labels of that region."""
    shared = source.region & region
    if not shared.is_empty:
        labels[shared.relative_to(region).slices] = source.labels[shared.relative_to(source.region).slices]
