"""Draws the figures of docs/stitching.md: what the functions of the pipeline make of two blocks, nothing drawn by hand.

python -m benchmarks.stitching.figure [FOLDER]     stitching.png and stitching-cases.png, by default in docs/images
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import zarr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from benchmarks.stitching.adapters import plain_iou
from benchmarks.stitching.case import Case
from benchmarks.stitching.make import make_case
from benchmarks.stitching.noise import Noise
from slidesam.tasks.grid import BlockGrid
from tests.support.blockwise import Stitched, stitched

Labels = NDArray[np.integer[Any]]
_INK, _FALSE = "#1c1c1c", "#d60000"
_GREY = (0.86, 0.86, 0.86)
_COLOURS = np.array([
    [0.55, 0.75, 0.92], [0.98, 0.80, 0.55], [0.66, 0.85, 0.62], [0.93, 0.70, 0.80], [0.80, 0.74, 0.92],
    [0.96, 0.92, 0.58], [0.62, 0.87, 0.86], [0.86, 0.76, 0.66],
])  # fmt: skip
_FADED = 0.55  # how much paler the halo is than what a block owns
# A place at which more goes wrong than at most: seed of the scene, and the rows and columns of it that are drawn.
_SEED, _ROWS, _COLUMNS = 3, slice(95, 183), slice(200, 312)
_DPI = 200


# ---------------------------------------------------------------------------------------------------- what blocks make of it


class Methods(NamedTuple):
    """A case and what is made of it, on the pixels of the whole scene.

    Attributes:
        case: The case.
        truth: (y, x) the true objects.
        cut: (y, x) every block paints its inner region, nothing is joined.
        plain: (y, x) the same, joined by the plain IoU rule.
        ours: (y, x) slidesam's.
        outer: Labels that each block sees.
    """

    case: Case
    truth: Labels
    cut: Labels
    plain: Labels
    ours: Labels
    outer: list[Labels]


def all_methods(folder: Path, seed: int) -> Methods:
    """Touching cells in four blocks that err, and the three ways to put them together."""
    case = make_case(folder / "case", "confluent", Noise(), seed, side=512)
    outer: list[Labels] = list(case.all_labels())
    plain_iou.stitch(case, folder / "plain.zarr")
    plain = np.asarray(zarr.open_array(folder / "plain.zarr", mode="r")[:])
    ours = stitched(outer, BlockGrid(case.shape, case.block_shape, case.halo)).labels
    return Methods(case, case.truth(), _cut(case, outer), plain, ours, outer)


def _cut(case: Case, outer: Sequence[Labels]) -> Labels:
    """Every block's own labels where it owns the pixels, no two blocks sharing an id."""
    painted = np.zeros(case.shape, np.int64)
    top = 0
    for block_id, labels in enumerate(outer):
        own = labels[_inside(case.inner(block_id), case.outer(block_id))].astype(np.int64)
        painted[case.inner(block_id)] = np.where(own > 0, own + top, 0)
        top += int(labels.max())
    return painted


def _inside(region: tuple[slice, slice], outer: tuple[slice, slice]) -> tuple[slice, ...]:
    return tuple(slice(r.start - o.start, r.stop - o.start) for r, o in zip(region, outer, strict=True))


def false_borders(methods: Methods, labels: Labels, seam: int) -> NDArray[np.bool_]:
    """(y,) where a result has a border along the seam between the first two blocks that neither of these sees there.

    Args:
        methods: The case and the blocks' labels.
        labels: (y, x) the result.
        seam: The first column of the second block.
    """
    false = labels[:, seam - 1] != labels[:, seam]
    for block_id in (0, 1):
        rows, columns = methods.case.outer(block_id)
        at = seam - columns.start
        seen = methods.outer[block_id]
        false[rows] &= seen[:, at - 1] == seen[:, at]
    return false


# ---------------------------------------------------------------------------------------------------------------- drawing


def colours_of(truth: Labels) -> NDArray[np.float64]:
    """(n + 1, 3) a colour per true object, other than its neighbours'; white for background."""
    size = int(truth.max()) + 1
    touching = np.zeros((size, size), bool)
    for one, two in ((truth[:-1], truth[1:]), (truth[:, :-1], truth[:, 1:]), (truth[:-1, :-1], truth[1:, 1:])):
        touching[one.ravel(), two.ravel()] = touching[two.ravel(), one.ravel()] = True
    chosen = np.full(size, -1)
    for number in range(1, size):
        taken = set(chosen[np.flatnonzero(touching[number])])
        # Begins elsewhere each time, so that all colours are used.
        turn = [(number + step) % len(_COLOURS) for step in range(len(_COLOURS))]
        chosen[number] = next((colour for colour in turn if colour not in taken), turn[0])
    colours = _COLOURS[chosen]
    colours[0] = 1
    return colours


def painted_like(labels: Labels, truth: Labels, colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """(y, x, 3) each label in the colour of the true object that it shares most pixels with."""
    ids, flat = np.unique(labels, return_inverse=True)
    picture = np.ones((*labels.shape, 3))
    for index, number in enumerate(ids):
        if number:
            mask = (flat == index).reshape(labels.shape)
            most = np.bincount(truth[mask]).argsort()[::-1]
            best = next((object_id for object_id in most if object_id), 0)
            picture[mask] = colours[best] if best else _GREY
    return picture


def draw_labels(axes: Axes, labels: Labels, picture: NDArray[np.float64], width: float = 0.9) -> None:
    """Filled labels with their outlines, without ticks.

    Args:
        axes: Where to.
        labels: (y, x) labels.
        picture: (y, x, 3) their colours.
        width: Of the outlines, in points.
    """
    height, length = labels.shape
    axes.imshow(picture, interpolation="nearest", extent=(0, length, height, 0))
    y, x = np.nonzero(labels[:, 1:] != labels[:, :-1])
    upright = np.stack([np.stack([x + 1, y], -1), np.stack([x + 1, y + 1], -1)], 1)
    y, x = np.nonzero(labels[1:] != labels[:-1])
    level = np.stack([np.stack([x, y + 1], -1), np.stack([x + 1, y + 1], -1)], 1)
    lines = np.concatenate([upright, level])
    axes.add_collection(LineCollection(list(lines), colors=_INK, linewidths=width, capstyle="projecting"))
    axes.set(xlim=(0, length), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#888888", linewidth=0.6)


def draw_seam(axes: Axes, seam: int) -> None:
    """The seam, dashed."""
    axes.axvline(seam, color=_INK, linewidth=1.1, linestyle=(0, (4, 3)))


def fade(picture: NDArray[np.float64], owned: slice) -> NDArray[np.float64]:
    """Makes paler what lies outside the owned columns."""
    pale = picture + (1 - picture) * _FADED
    pale[:, owned] = picture[:, owned]
    return pale


def hide(axes: Axes, start: int, stop: int, height: int) -> None:
    """Hatches columns that a block doesn't see."""
    if stop > start:
        box = Rectangle((start, 0), stop - start, height, facecolor="#f4f4f4", edgecolor="#c4c4c4", hatch="///", lw=0)
        axes.add_patch(box)


# ------------------------------------------------------------------------------------------------------- the two figures


def draw_view(axes: Axes, methods: Methods, block_id: int, colours: NDArray[np.float64]) -> None:
    """What the left block (0) or the right one (1) sees of the place that is shown."""
    seam, halo = methods.case.block_shape[1] - _COLUMNS.start, methods.case.halo
    whole = np.zeros(methods.case.shape, np.int64)
    whole[methods.case.outer(block_id)] = methods.outer[block_id]
    seen = whole[_ROWS, _COLUMNS]
    height, width = seen.shape
    owned = (slice(0, seam), slice(seam, width))[block_id]
    draw_labels(axes, seen, fade(painted_like(seen, methods.truth[_ROWS, _COLUMNS], colours), owned))
    hide(axes, *((seam + halo, width), (0, seam - halo))[block_id], height)
    draw_seam(axes, seam)
    middle = seam + (halo if block_id == 0 else -halo) / 2
    for x, word in ((middle, "halo"), ((owned.start + owned.stop) / 2, "owned")):
        axes.text(x, height + 1.5, word, ha="center", va="top", fontsize=9, color="#555555")


def seam_figure(path: Path) -> None:
    """Two blocks' views of the same cells, and what three methods make of them."""
    with tempfile.TemporaryDirectory() as folder:
        methods = all_methods(Path(folder), _SEED)
    shown = (_ROWS, _COLUMNS)
    truth = methods.truth[shown]
    seam = methods.case.block_shape[1] - _COLUMNS.start
    colours = colours_of(methods.truth)
    height, width = truth.shape
    figure = Figure(figsize=(9, 5.5), facecolor="white")
    panels = figure.subplots(2, 3).ravel()
    for block_id, name in enumerate(("a  what the left block sees", "b  what the right block sees")):
        panels[block_id].set_title(name, fontsize=10.5, loc="left")
        draw_view(panels[block_id], methods, block_id, colours)
    panels[2].set_title("c  what is there", fontsize=10.5, loc="left")
    draw_labels(panels[2], truth, painted_like(truth, truth, colours))
    draw_seam(panels[2], seam)
    results = (
        ("d  nothing joined", methods.cut),
        ("e  joined by IoU alone", methods.plain),
        ("f  slidesam", methods.ours),
    )
    for axes, (name, labels) in zip(panels[3:], results, strict=True):
        axes.set_title(name, fontsize=10.5, loc="left")
        draw_labels(axes, labels[shown], painted_like(labels[shown], truth, colours))
        false = false_borders(methods, labels, methods.case.block_shape[1])[_ROWS]
        starts, stops = np.flatnonzero(np.diff(false.astype(int), prepend=0, append=0)).reshape(-1, 2).T
        lines = [[(seam, start), (seam, stop)] for start, stop in zip(starts, stops, strict=True)]
        axes.add_collection(LineCollection(lines, colors=_FALSE, linewidths=3.2, capstyle="butt", zorder=4))
        words_below = f"false borders at the seam: {false.sum()} px"
        axes.text(width / 2, height + 1.5, words_below, ha="center", va="top", fontsize=9, color=_INK)
    figure.subplots_adjust(left=0.008, right=0.992, top=0.95, bottom=0.045, wspace=0.03, hspace=0.2)
    save(figure, path)


class Scene:
    """Two blocks of 40 px side by side with a halo of 20 px: the left one sees columns 0..60, the right one 20..80."""

    def __init__(self) -> None:
        self.grid = BlockGrid((40, 80), (40, 40), 20)
        self.left, self.right = np.zeros((40, 80), np.uint32), np.zeros((40, 80), np.uint32)

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], left: int = 0, right: int = 0) -> Scene:
        """Lets each block see an ellipse under a label, 0 = not at all."""
        y, x = np.mgrid[:40, :80] + 0.5
        inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
        for view, number in ((self.left, left), (self.right, right)):
            if number:
                view[inside] = number
        return self

    def cut_left(self, row: int, label: int, into: int) -> Scene:
        """Has the left block see the part of a label from this row on as another one."""
        below = self.left[row:]
        below[below == label] = into
        return self

    def stitched(self) -> tuple[list[Labels], Stitched]:
        """What the two blocks see of the slide, and what becomes of it."""
        self.left[:, 60:] = self.right[:, :20] = 0
        views = [_numbered(self.left[:, :60]), _numbered(self.right[:, 20:])]
        return [self.left, self.right], stitched(views, self.grid)


def _numbered(view: Labels) -> NDArray[np.uint32]:
    """The same labels as 1..n."""
    _, flat = np.unique(np.concatenate([[0], view.ravel()]), return_inverse=True)
    return np.ascontiguousarray(flat[1:].reshape(view.shape), np.uint32)


CASES: tuple[tuple[str, Scene], ...] = (
    (
        "One outline. The left block sees\nthe cell further from its edge:\nthe whole cell is taken from there.",
        Scene().ellipse((20, 35), (12, 9), left=1).ellipse((21, 36), (10, 8.5), right=1),
    ),
    (
        "Split pair. The halves' border is\nlong for how thick they are, and\nthe right block sees one cell: one.",
        Scene().ellipse((20, 31), (11, 10), left=1, right=1).cut_left(20, 1, 2),
    ),
    (
        "Ambiguous. The border is short:\ntwo cells, whatever the right block\nsees in its halo.",
        Scene().ellipse((12, 30), (8, 7.5), 1, 1).ellipse((27, 31), (8, 7.5), 2, 1),
    ),
    (
        "Recovered. The owner has nothing\nthere, the neighbour sees the cell\nwhole: it is kept.",
        Scene().ellipse((14, 32), (7, 7), right=1).ellipse((27, 49), (8, 8), 2, 2),
    ),
    (
        "Claimed twice. Both cells reach\nover the seam: the smaller one\ngets the pixels.",
        Scene().ellipse((20, 29), (14, 14), left=1).ellipse((20, 46), (8, 9), right=2),
    ),
    (
        "Wider than the halo. No block sees\nit whole: each paints what it owns,\nwith a step where they disagree.",
        Scene().ellipse((20, 40), (12, 37), left=1).ellipse((20, 40), (10.5, 37), right=1),
    ),
)


def cases_figure(path: Path) -> None:
    """What the rule does, a row per case."""
    figure = Figure(figsize=(9, 6.3), facecolor="white")
    panels = figure.subplots(len(CASES), 4, width_ratios=(1, 1, 1, 1.12))
    for title, axes in zip(("the left block sees", "the right block sees", "the result"), panels[0], strict=False):
        axes.set_title(title, fontsize=10)
    for row, (words, scene) in zip(panels, CASES, strict=True):
        views, found = scene.stitched()
        colours = colours_of(found.labels)
        for axes, view, owned in zip(row, views, (slice(0, 40), slice(40, 80)), strict=False):
            draw_labels(axes, view, fade(painted_like(view, found.labels, colours), owned), 1.1)
        hide(row[0], 60, 80, 40)
        hide(row[1], 0, 20, 40)
        draw_labels(row[2], found.labels, painted_like(found.labels, found.labels, colours), 1.1)
        for axes in row[:3]:
            draw_seam(axes, 40)
        row[3].axis("off")
        row[3].text(0.02, 0.5, words, fontsize=9.5, va="center", transform=row[3].transAxes)
    figure.subplots_adjust(left=0.008, right=0.998, top=0.962, bottom=0.008, wspace=0.04, hspace=0.07)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture of few colours, which makes it small."""
    figure.savefig(path, dpi=_DPI)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    """Draws both figures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    mpl.rcParams["hatch.linewidth"] = 0.6
    seam_figure(folder / "stitching.png")
    cases_figure(folder / "stitching-cases.png")


if __name__ == "__main__":
    main()
