"""Owns block geometry: the pixels that a block owns, those that it reads, and where two blocks meet. Only integers.

A block's *inner region* is what it owns. Its *outer region* is the inner region grown by the halo and clipped to the slide. A
*seam* is a pair of blocks whose inner regions meet, or whose outer regions overlap; their *overlap* is what both read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from slidesam.tasks.errors import SettingsError


class Region(NamedTuple):
    """A rectangle of pixels, half open: rows y0..y1, columns x0..x1.

    Example:
        >>> Region(0, 0, 4, 6) & Region(2, 3, 9, 9)
        Region(y0=2, x0=3, y1=4, x1=6)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this region in a (y, x) array."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def is_empty(self) -> bool:
        """Whether the region holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    def __and__(self, region: Region) -> Region:
        return Region(
            max(self.y0, region.y0), max(self.x0, region.x0), min(self.y1, region.y1), min(self.x1, region.x1)
        )

    def relative_to(self, origin: Region) -> Region:
        """Return this region in coordinates that start at `origin`'s first pixel."""
        return Region(self.y0 - origin.y0, self.x0 - origin.x0, self.y1 - origin.y0, self.x1 - origin.x0)


class Block(NamedTuple):
    """One unit of segmentation work.

    Attributes:
        block_id: Position in C order.
        block_index: Row and column in the grid.
        inner: Pixels that the block owns.
        outer: Pixels that it reads, clipped to the slide.
    """

    block_id: int
    block_index: tuple[int, int]
    inner: Region
    outer: Region


class Seam(NamedTuple):
    """Two blocks that read the same pixels, `first` < `second` in id, and these pixels."""

    first: int
    second: int
    overlap: Region


class BlockGrid:
    """Cut a slide into blocks.

    Args:
        shape: Height and width of the slide in pixels, at the level that is segmented.
        block_shape: Height and width of the blocks; the last ones of a row or column are smaller.
        halo: Context per side, in pixels.

    Raises:
        SettingsError: A size is below one, or the halo is negative.

    Example:
        >>> grid = BlockGrid((100, 250), (100, 100), 10)
        >>> len(grid), grid.outer_shape
        (3, (120, 120))
        >>> grid[2].inner, grid[2].outer
        (Region(y0=0, x0=200, y1=100, x1=250), Region(y0=0, x0=190, y1=100, x1=250))
    """

    def __init__(self, shape: tuple[int, int], block_shape: tuple[int, int], halo: int) -> None:
        if min(shape) < 1 or min(block_shape) < 1 or halo < 0:
            raise SettingsError(f"no grid of blocks of {block_shape} px with a halo of {halo} px on {shape} px")
        self.shape = (int(shape[0]), int(shape[1]))
        self.block_shape = (int(block_shape[0]), int(block_shape[1]))
        self.halo = int(halo)
        self.grid_shape = (-(-self.shape[0] // self.block_shape[0]), -(-self.shape[1] // self.block_shape[1]))

    @property
    def outer_shape(self) -> tuple[int, int]:
        """Shape in pixels of all input tiles, the images that the segmenter sees.

        It is a block, or the slide if that is smaller, plus the halo on each side. Input tiles are padded where the slide ends,
        even if the slide is a single block, so that its edges look the same in one block and in many.
        """
        height, width = (
            min(size, block) + 2 * self.halo for size, block in zip(self.shape, self.block_shape, strict=True)
        )
        return height, width

    def __len__(self) -> int:
        return self.grid_shape[0] * self.grid_shape[1]

    def __iter__(self) -> Iterator[Block]:
        return (self[block_id] for block_id in range(len(self)))

    def __getitem__(self, block_id: int) -> Block:
        if not 0 <= block_id < len(self):
            raise IndexError(f"block {block_id} of {len(self)}")
        row, column = divmod(block_id, self.grid_shape[1])
        y0, x0 = row * self.block_shape[0], column * self.block_shape[1]
        y1, x1 = min(y0 + self.block_shape[0], self.shape[0]), min(x0 + self.block_shape[1], self.shape[1])
        return Block(block_id, (row, column), Region(y0, x0, y1, x1), self._grown(y0, x0, y1, x1))

    def _grown(self, y0: int, x0: int, y1: int, x1: int) -> Region:
        return Region(
            max(y0 - self.halo, 0),
            max(x0 - self.halo, 0),
            min(y1 + self.halo, self.shape[0]),
            min(x1 + self.halo, self.shape[1]),
        )

    def input_tile(self, block: Block) -> Region:
        """Place a block's input tile, of `outer_shape`, on the slide; it may reach past the slide's edges."""
        y0, x0 = block.inner.y0 - self.halo, block.inner.x0 - self.halo
        return Region(y0, x0, y0 + self.outer_shape[0], x0 + self.outer_shape[1])

    def _reach(self, pixels: int) -> tuple[int, int]:
        """Largest distance, in rows and columns, of blocks whose inner regions lie less than so many pixels apart, at least 1."""
        reach_y, reach_x = (max(1, -(-pixels // block)) for block in self.block_shape)
        return reach_y, reach_x

    def seams(self, block_id: int | None = None) -> Iterator[Seam]:
        """List pairs of blocks that read the same pixels, with these pixels; no pair comes twice.

        A block meets the eight around it, corners included, and more if the halo is wider than half a block.

        Args:
            block_id: List only the seams in which this block comes first; by default all seams.
        """
        reach_y, reach_x = self._reach(2 * self.halo)
        for first in self if block_id is None else (self[block_id],):
            row, column = first.block_index
            for y in range(row, min(row + reach_y + 1, self.grid_shape[0])):
                for x in range(max(0, column - reach_x), min(column + reach_x + 1, self.grid_shape[1])):
                    if (y, x) > (row, column):
                        second = self[y * self.grid_shape[1] + x]
                        yield Seam(first.block_id, second.block_id, first.outer & second.outer)

    def batches(self, shape: tuple[int, int]) -> Iterator[tuple[int, ...]]:
        """Rectangles of so many rows and columns of blocks, as ids in C order: neighbours, so that a task reads few blocks twice.

        Example:
            >>> list(BlockGrid((30, 50), (10, 10), 2).batches((2, 2)))
            [(0, 1, 5, 6), (2, 3, 7, 8), (4, 9), (10, 11), (12, 13), (14,)]
        """
        rows, columns = self.grid_shape
        for y in range(0, rows, shape[0]):
            for x in range(0, columns, shape[1]):
                yield tuple(
                    row * columns + column
                    for row in range(y, min(y + shape[0], rows))
                    for column in range(x, min(x + shape[1], columns))
                )

    def neighbours(self, block_id: int) -> Iterator[int]:
        """List the ids of the blocks that read pixels which this block owns, ascending."""
        row, column = self[block_id].block_index
        reach_y, reach_x = self._reach(self.halo)
        for y in range(max(0, row - reach_y), min(row + reach_y + 1, self.grid_shape[0])):
            for x in range(max(0, column - reach_x), min(column + reach_x + 1, self.grid_shape[1])):
                if (y, x) != (row, column):
                    yield y * self.grid_shape[1] + x
