"""A case: a slide cut into blocks, each block's own labels, and the truth. What every method under test is given.

    CASE/case.json      {"shape": [y, x], "block_shape": [y, x], "halo": pixels}
    CASE/blocks.zarr    (block, y, x) uint32: local labels of each block's outer region, starting at (0, 0); blocks in C order
    CASE/truth.zarr     (y, x) uint32: the objects that there are (where the truth is known)

A block owns its inner region and sees its outer region: the inner one grown by the halo and clipped to the slide. Only numpy and
zarr are needed here, so that methods can be run in an environment of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

Slices = tuple[slice, slice]
# Side of the chunks inside a block's labels.
_CHUNK = 128


class Case(NamedTuple):
    """Where a case lies, and its geometry.

    Attributes:
        folder: The case's folder.
        shape: Height and width of the slide in pixels.
        block_shape: Height and width of a block's inner region; the last of a row or column may be smaller.
        halo: Context on each side, in pixels.
    """

    folder: Path
    shape: tuple[int, int]
    block_shape: tuple[int, int]
    halo: int

    @classmethod
    def open(cls, folder: Path) -> Case:
        """The case in a folder."""
        facts = json.loads((folder / "case.json").read_text())
        return cls(folder, tuple(facts["shape"]), tuple(facts["block_shape"]), facts["halo"])

    def save(self) -> None:
        """Writes `case.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"shape": self.shape, "block_shape": self.block_shape, "halo": self.halo}
        (self.folder / "case.json").write_text(json.dumps(facts) + "\n")

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block_shape[0]), -(-self.shape[1] // self.block_shape[1])

    def __len__(self) -> int:
        return self.grid_shape[0] * self.grid_shape[1]

    def inner(self, block_id: int) -> Slices:
        """The pixels that a block owns."""
        return self._region(block_id, 0)

    def outer(self, block_id: int) -> Slices:
        """The pixels that a block sees."""
        return self._region(block_id, self.halo)

    def _region(self, block_id: int, grow: int) -> Slices:
        index = divmod(block_id, self.grid_shape[1])
        y, x = (
            slice(max(i * side - grow, 0), min((i + 1) * side + grow, size))
            for i, side, size in zip(index, self.block_shape, self.shape, strict=True)
        )
        return y, x

    def create_blocks(self) -> zarr.Array[Any]:
        """Creates the empty array of all blocks' labels, with the codec that decodes fastest; one shard per block."""
        sides = (min(size, side) + 2 * self.halo for size, side in zip(self.shape, self.block_shape, strict=True))
        height, width = (-(-side // _CHUNK) * _CHUNK for side in sides)
        return zarr.create_array(
            self.folder / "blocks.zarr",
            shape=(len(self), height, width),
            shards=(1, height, width),
            chunks=(1, _CHUNK, _CHUNK),
            dtype="uint32",
            compressors=[BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle")],
            overwrite=True,
        )

    def blocks(self) -> zarr.Array[Any]:
        """The array of all blocks' labels."""
        return zarr.open_array(self.folder / "blocks.zarr", mode="r")

    def labels(self, block_id: int) -> NDArray[np.uint32]:
        """(y, x) a block's labels of its outer region."""
        y, x = self.outer(block_id)
        return np.asarray(self.blocks()[block_id, : y.stop - y.start, : x.stop - x.start])

    def all_labels(self) -> Iterator[NDArray[np.uint32]]:
        """`labels` of each block in turn."""
        return (self.labels(block_id) for block_id in range(len(self)))

    def truth(self) -> NDArray[np.uint32]:
        """(y, x) the objects that there are."""
        return np.asarray(zarr.open_array(self.folder / "truth.zarr", mode="r")[:])
