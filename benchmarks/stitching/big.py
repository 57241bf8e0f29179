"""Large confluent slides, made block by block: for speed and memory."""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import fastremap
import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks.stitching.case import Case
from benchmarks.stitching.scenes import SPACING

# The scene repeats itself, so that a slide of any size costs one tile of it.
_TILE = 2048


def make_big(folder: Path, side: int, *, block: int = 1024, halo: int = 64, seed: int = 0) -> Case:
    """Writes a case of touching cells on which all blocks agree, without its truth; does nothing if it is there.

    Args:
        folder: Where to.
        side: Of the slide, in pixels.
        block: Side of a block, in pixels.
        halo: In pixels.
        seed: Of the scene.
    """
    case = Case(folder, (side, side), (block, block), halo)
    if (folder / "case.json").exists():
        return Case.open(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case.create_blocks()
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write_block, [case] * len(case), range(len(case)), [seed] * len(case), chunksize=16))
    case.save()
    return case


def true_labels(region: tuple[slice, slice], side: int, seed: int = 0) -> NDArray[np.int64]:
    """(y, x) the cells of a region of a slide, numbered by their place."""
    row, column = (tiles[s] for tiles, s in zip(_coordinates(side), region, strict=True))
    cells, per_side = _tile(seed)
    y, x = cells[:, (row % _TILE)[:, None], (column % _TILE)[None]]
    rows = (row // _TILE * per_side)[:, None] + y
    columns = (column // _TILE * per_side)[None] + x
    # Cells of neighbouring tiles reach a cell beyond the slide.
    width = (side // _TILE + 1) * per_side + 4
    return (rows + 2) * width + columns + 3


def _coordinates(side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(side), np.arange(side)


@lru_cache(maxsize=1)
def _tile(seed: int) -> tuple[NDArray[np.int16], int]:
    """(2, y, x): row and column of the cell that each pixel of the repeating tile belongs to; cells per side of a tile."""
    count = round(_TILE / SPACING)
    step = _TILE / count
    inside = np.random.default_rng(seed).uniform(0.08, 0.92, (count, count, 2))
    index = np.arange(-2, count + 2)
    corners = np.stack(np.meshgrid(index, index, indexing="ij"), -1)
    seeds = (corners + inside[corners[..., 0] % count, corners[..., 1] % count]) * step
    pixels = np.stack(np.mgrid[:_TILE, :_TILE], -1).reshape(-1, 2)
    _, nearest = cKDTree(seeds.reshape(-1, 2)).query(pixels, workers=2)
    return corners.reshape(-1, 2)[nearest].T.reshape(2, _TILE, _TILE).astype(np.int16), count


def _write_block(case: Case, block_id: int, seed: int) -> None:
    seen, _ = fastremap.renumber(true_labels(case.outer(block_id), case.shape[0], seed))
    order = np.concatenate([[0], 1 + np.random.default_rng([seed, block_id]).permutation(int(seen.max()))])
    blocks = zarr.open_array(case.folder / "blocks.zarr", mode="r+")
    whole = np.zeros(blocks.shape[1:], np.uint32)
    whole[: seen.shape[0], : seen.shape[1]] = order[seen]
    blocks[block_id] = whole
