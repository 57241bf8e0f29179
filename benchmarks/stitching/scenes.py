"""Scenes with a known truth: six kinds of objects, each hard for stitching in its own way.

Every scene is a function `(side, rng) -> (y, x) uint32 labels`. Sizes are chosen for blocks of 256 px with a halo of 32 px.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Labels = NDArray[np.uint32]
Scene = Callable[[int, np.random.Generator], Labels]
# Mean distance of neighbouring cells in `confluent`, in pixels: about 5900 of them in 2048 x 2048.
SPACING = 26.6
# Cells smaller than this, in pixels, are an accident of the seeds' places or of the scene's edge.
_SLIVER = 60


def separated(side: int, rng: np.random.Generator) -> Labels:
    """Ellipses of 10 to 28 px, none of which touch: the easy case."""
    return _ellipses(side, rng, wanted=side * side // 1100, radii=(5, 14), gap=3)


def confluent(side: int, rng: np.random.Generator, spacing: float = SPACING) -> Labels:
    """Cells that touch on all sides: every wrong match joins two of them. Slivers that chance leaves are background."""
    count = round(side / spacing)
    step = side / count
    corners = np.stack(np.meshgrid(*2 * [np.arange(-1, count + 1) * step], indexing="ij"), -1).reshape(-1, 2)
    seeds = corners + rng.uniform(0.08, 0.92, corners.shape) * step
    pixels = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)
    _, nearest = cKDTree(seeds).query(pixels, workers=2)
    cells = nearest.reshape(side, side) + 1
    cells[np.bincount(cells.ravel())[cells] < _SLIVER] = 0
    return _compact(cells)


def larger(side: int, rng: np.random.Generator) -> Labels:
    """Ellipses of up to 440 px, most of them wider than the halo, some wider than a block, small ones between."""
    few = _ellipses(side, rng, wanted=side * side // 120_000, radii=(60, 220), gap=3)
    return _ellipses(side, rng, wanted=side * side // 20_000, radii=(8, 45), gap=3, taken=few)


def filaments(side: int, rng: np.random.Generator) -> Labels:
    """Thin bent fibres that run through many blocks, a pixel or two apart where they meet."""
    labels = np.zeros((side, side), np.uint32)
    for number in range(1, side * side // 35_000 + 1):
        width = rng.integers(2, 5)
        path = _walk(side, rng, steps=int(rng.integers(60, 700)))
        mask = np.zeros((side, side), bool)
        mask[path[:, 0], path[:, 1]] = True
        box = _grown_box(path, width, side)
        disk = ndimage.distance_transform_edt(~mask[box]) <= width
        if not labels[_grown_box(path, width + 2, side)][
            ndimage.binary_dilation(np.pad(disk, _margins(box, _grown_box(path, width + 2, side))), iterations=2)
        ].any():
            labels[box][disk] = number
    return _compact(labels)


def nested(side: int, rng: np.random.Generator) -> Labels:
    """Rings with a hole, in the hole another ring or a cell: a hole must stay, and what lies in it must not be joined."""
    outer = _ellipses(side, rng, wanted=side * side // 9000, radii=(18, 60), gap=3)
    depth = ndimage.distance_transform_edt(_edges_open(outer))
    labels = np.where(depth <= 6, outer, 0)
    middle = np.where((depth > 9) & (depth <= 14), outer, 0)
    centre = np.where(depth > 17, outer, 0)
    top = int(outer.max())
    return _compact(labels + np.where(middle > 0, middle + top, 0) + np.where(centre > 0, centre + 2 * top, 0))


SCENES: dict[str, Scene] = {
    "separated": separated,
    "confluent": confluent,
    "larger than the halo": larger,
    "filaments": filaments,
    "nested": nested,
}


def _ellipses(
    side: int, rng: np.random.Generator, wanted: int, radii: tuple[int, int], gap: int, taken: Labels | None = None
) -> Labels:
    """Places ellipses at random where they keep `gap` pixels from all others."""
    labels = np.zeros((side, side), np.uint32) if taken is None else taken.copy()
    number = int(labels.max())
    for _ in range(3 * wanted):
        centre = rng.uniform(0, side, 2)
        long, short = rng.uniform(*radii), 0.0
        short = long * rng.uniform(0.55, 1)
        reach = int(long + gap + 2)
        y0, x0 = (max(int(c) - reach, 0) for c in centre)
        y1, x1 = (min(int(c) + reach, side) for c in centre)
        y, x = np.ogrid[y0:y1, x0:x1]
        angle = rng.uniform(0, np.pi)
        along = (y - centre[0]) * np.sin(angle) + (x - centre[1]) * np.cos(angle)
        across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
        if labels[y0:y1, x0:x1][(along / (long + gap)) ** 2 + (across / (short + gap)) ** 2 <= 1].any():
            continue
        number += 1
        labels[y0:y1, x0:x1][(along / long) ** 2 + (across / short) ** 2 <= 1] = number
    return _compact(labels)


def _walk(side: int, rng: np.random.Generator, steps: int) -> NDArray[np.int64]:
    """Pixels of a smooth random path, clipped to the scene."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.03, steps))
    moves = np.stack([np.sin(heading), np.cos(heading)], -1)
    path = np.round(rng.uniform(0, side, 2) + np.cumsum(moves, 0)).astype(np.int64)
    # What has left the scene doesn't come back.
    outside = np.flatnonzero(((path < 0) | (path >= side)).any(1))
    return path[: outside[0]] if outside.size else path


def _grown_box(path: NDArray[np.int64], margin: int, side: int) -> tuple[slice, slice]:
    """The box of some pixels, grown by a margin and clipped."""
    if not path.size:
        return slice(0, 0), slice(0, 0)
    low, high = path.min(0) - margin - 1, path.max(0) + margin + 2
    return slice(max(low[0], 0), min(high[0], side)), slice(max(low[1], 0), min(high[1], side))


def _margins(inside: tuple[slice, slice], around: tuple[slice, slice]) -> list[tuple[int, int]]:
    return [(i.start - a.start, a.stop - i.stop) for i, a in zip(inside, around, strict=True)]


def _edges_open(labels: Labels) -> NDArray[np.bool_]:
    """Pixels all of whose neighbours have the same label, those along the scene's edge too."""
    padded = np.pad(labels, 1, mode="edge")
    same = [padded[y : y + labels.shape[0], x : x + labels.shape[1]] == labels for y in range(3) for x in range(3)]
    return np.logical_and.reduce([*same, labels > 0])


def _compact(labels: NDArray[np.integer]) -> Labels:
    """Pieces of equal label, 8-connected, as objects of their own, 1..N."""
    from skimage.measure import label

    return label(labels, background=0, connectivity=2).astype(np.uint32)
