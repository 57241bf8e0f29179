"""Report on the seams: how many objects lie across, on how many blocks agree, whether the halo is wide enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.run.records import SeamReport
from slidesam.tasks.stitch.tables import (
    BlockLabels,
    Decisions,
    Flags,
    Ints,
    LabelPairs,
    Resolution,
    count_components,
)

# The counts, per seam and for the slide, with the words that explain them. Their names are keys on disk.
COLUMNS = {
    "objects": "objects that a block owns in part and that reach into what the other owns",
    "matched": "of those, the ones on which both blocks agree (IoU of at least stitch.min_iou)",
    "contested": "the other block sees something else there",
    "one_sided": "the other block sees nothing there",
    "united": "painted in fragments, because no block sees them whole or blocks disagree on their parts",
    "rescued": "missed by the block that owns them, kept as the other sees them whole",
    "dropped": "suppressed, because other objects cover them",
}
AMONG_OBJECTS = ("matched", "contested", "one_sided", "united")
"""The counts of objects that are part of the objects at seams; of the others a share has no meaning."""
DISAGREEMENTS = ("contested", "one_sided", "united", "dropped")
"""The counts of objects on which blocks disagree, or of which they see only fragments."""
_ADJACENT = {(0, 1): "side by side", (1, 0): "above and below", (1, 1): "at a corner", (1, -1): "at a corner"}
# From this share of the objects at seams on a wider halo is advised, to a multiple of so many pixels.
_WORTH_A_WORD, _STEP = 0.01, 16
_FEW = 3


def make_report(
    grid: BlockGrid, labels: BlockLabels, pairs: LabelPairs, resolution: Resolution, factor: float = 1.0
) -> SeamReport:
    """Make the report.

    Args:
        grid: The blocks on level 0.
        labels: All labels of all blocks.
        pairs: Their overlaps.
        resolution: What was made of them.
        factor: Pixels of level 0 per pixel in which `blocks.halo` is given; of two axes, the larger.
    """
    decisions = resolution.decisions
    sightings = _Sightings(grid, labels, pairs, decisions.component)
    crossing, is_agreed = sightings.find_crossing(decisions.matched)
    is_overlapping = np.isin(crossing, sightings.of_pairs(np.ones(pairs.first.size, bool)))
    united, suppressed = (
        sightings.flag_components(decisions.component[mask]) for mask in (decisions.fragment, decisions.suppressed)
    )
    counted = {
        "objects": crossing,
        "matched": crossing[is_agreed],
        "contested": crossing[~is_agreed & is_overlapping],
        "one_sided": crossing[~is_agreed & ~is_overlapping],
        "united": crossing[united[sightings.components(crossing)]],
        "rescued": sightings.of_reaching(decisions.recovered[pairs.reaching]),
        "dropped": sightings.of_suppressed(decisions),
    }
    totals = {name: int(np.unique(sightings.components(sighting)).size) for name, sighting in counted.items()}
    totals["matched"] = totals["objects"] - int(np.unique(sightings.components(crossing[~is_agreed])).size)
    # They may lie wholly in their block, beside what covers them.
    totals["dropped"] = int(suppressed.sum())
    at_seams = sightings.flag_components(decisions.component[pairs.reaching[labels.visible[pairs.reaching]]])
    wide = _find_wide(labels, decisions.component, united & at_seams)
    needed = _needed_halo(grid, labels, decisions.component, wide)
    advised_halo, warning = _advise(grid, totals["objects"], int(wide.size), needed, factor)
    return SeamReport(
        totals={name: totals[name] for name in COLUMNS},
        columns=("first", "second", *COLUMNS),
        rows=sightings.rows([counted[name] for name in COLUMNS]),
        wide=int(wide.size),
        halo=grid.halo,
        advised_halo=advised_halo,
        warnings=() if warning is None else (warning,),
    )


class SeamFacts(NamedTuple):
    """What the table of objects says of seams.

    Attributes:
        fragments: (objects + 1,) by id, of how many fragments the object is put together; 1 where one block's outline is taken.
        disputed: (objects + 1,) by id, 1 where the object crosses a seam and its other block sees something else or nothing.
    """

    fragments: NDArray[np.int32]
    disputed: NDArray[np.uint8]


def find_seam_facts(grid: BlockGrid, labels: BlockLabels, pairs: LabelPairs, resolution: Resolution) -> SeamFacts:
    """Find of each object how seams treat it."""
    decisions, relabelling = resolution.decisions, resolution.relabelling
    sightings = _Sightings(grid, labels, pairs, decisions.component)
    crossing, is_agreed = sightings.find_crossing(decisions.matched)
    disputed = sightings.flag_components(sightings.components(crossing[~is_agreed]))
    painted = np.flatnonzero(relabelling)
    flags = np.zeros(resolution.objects + 1, np.uint8)
    flags[np.abs(relabelling[painted])] = disputed[decisions.component[painted]]
    fragments = np.bincount(-relabelling[relabelling < 0], minlength=resolution.objects + 1)
    return SeamFacts(np.maximum(fragments, 1).astype(np.int32), flags)


def rank_seams(report: SeamReport) -> list[dict[str, int]]:
    """Return the counts at each seam by name, seams with most disagreements first."""
    seams = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
    return sorted(seams, key=count_disagreements, reverse=True)


def count_disagreements(seam: Mapping[str, int]) -> int:
    """Count at a seam the objects of `DISAGREEMENTS`."""
    return sum(seam[name] for name in DISAGREEMENTS)


def locate_seam(grid: BlockGrid, seam: Mapping[str, int]) -> tuple[str, str, str]:
    """Return row and column of a seam's two blocks, and how they lie, in words."""
    (row, column), (other_row, other_column) = (grid[seam[end]].block_index for end in ("first", "second"))
    # If the halo is wider than a block, blocks that don't touch see the same pixels.
    lie = _ADJACENT.get((other_row - row, other_column - column), "apart")
    return f"row {row}, column {column}", f"row {other_row}, column {other_column}", lie


class _Sightings:
    """Objects at seams. A *sighting* is one object at one seam, as one number: the seam's times the objects, plus the object's.

    Args:
        grid: The blocks.
        labels: All labels of all blocks.
        pairs: Their overlaps.
        component: (labels,) the object that each belongs to.
    """

    def __init__(self, grid: BlockGrid, labels: BlockLabels, pairs: LabelPairs, component: Ints) -> None:
        self._blocks, self._labels, self._pairs, self._component = len(grid), labels, pairs, component
        self._total = max(1, count_components(component))

    def find_crossing(self, matched: Flags) -> tuple[Ints, Flags]:
        """Return the sightings of objects that a block owns and that reach into another, and on which of them the two agree."""
        crossing = self.of_reaching(self._labels.visible[self._pairs.reaching])
        return crossing, np.isin(crossing, self.of_pairs(matched))

    def of_reaching(self, mask: Flags) -> Ints:
        """Return the sightings, ascending, of labels that reach into what another block owns, of the rows that a mask picks."""
        reaching, target = self._pairs.reaching[mask], self._pairs.into[mask]
        return np.unique(self._numbers(self._labels.blocks_of(reaching), target, reaching))

    def of_pairs(self, mask: Flags) -> Ints:
        """Return the sightings of both labels of the pairs that a mask picks."""
        first, second = self._pairs.first[mask], self._pairs.second[mask]
        blocks = self._labels.blocks_of(first), self._labels.blocks_of(second)
        return np.concatenate([self._numbers(*blocks, first), self._numbers(*blocks, second)])

    def of_suppressed(self, decisions: Decisions) -> Ints:
        """Return the sightings, ascending, of suppressed objects where they overlap others."""
        claims = decisions.whole | decisions.fragment | decisions.suppressed
        label_one, label_two = self._pairs.first, self._pairs.second
        are_rivals = claims[label_one] & claims[label_two] & (self._component[label_one] != self._component[label_two])
        is_suppressed = np.concatenate(
            [decisions.suppressed[label_one[are_rivals]], decisions.suppressed[label_two[are_rivals]]]
        )
        return np.unique(self.of_pairs(are_rivals)[is_suppressed])

    def _numbers(self, one_block: Ints, other_block: Ints, labels: Ints) -> Ints:
        seams = np.minimum(one_block, other_block) * self._blocks + np.maximum(one_block, other_block)
        return seams * self._total + self._component[labels]

    def components(self, sightings: Ints) -> Ints:
        """Return the object of each sighting."""
        return sightings % self._total

    def flag_components(self, components: Ints) -> Flags:
        """Return (components,) True for these."""
        flags = np.zeros(self._total, bool)
        flags[components] = True
        return flags

    def rows(self, columns: Sequence[Ints]) -> tuple[tuple[int, ...], ...]:
        """Return a row per seam, ascending: the ids of its two blocks, and how many sightings of each column are at it."""
        seams = [column // self._total for column in columns]
        numbers = np.unique(np.concatenate(seams))
        counts = [np.bincount(np.searchsorted(numbers, seam), minlength=numbers.size) for seam in seams]
        table = np.column_stack([numbers // self._blocks, numbers % self._blocks, *counts])
        return tuple(map(tuple, table.tolist()))


def _find_wide(labels: BlockLabels, component: Ints, is_fragmented: Flags) -> Ints:
    """Return the components in fragments at seams whose labels are all cut by the edge of what their blocks see."""
    is_uncut = np.zeros(is_fragmented.size, bool)
    is_uncut[component[labels.visible & labels.uncut]] = True
    return np.flatnonzero(is_fragmented & ~is_uncut)


def _needed_halo(grid: BlockGrid, labels: BlockLabels, component: Ints, wide: Ints) -> Ints:
    """Return per wide object with which halo a block would see it whole, as far as its fragments tell."""
    if not wide.size:
        return wide
    members = np.flatnonzero(np.isin(component, wide) & labels.visible)
    row = np.searchsorted(wide, component[members])
    low, high = np.full((wide.size, 2), np.iinfo(np.int64).max), np.zeros((wide.size, 2), np.int64)
    np.minimum.at(low, row, labels.box[members, :2])
    np.maximum.at(high, row, labels.box[members, 2:])
    inner = np.array([grid[int(block)].inner for block in labels.blocks_of(members)])
    beyond = np.maximum(inner[:, :2] - low[row], high[row] - inner[:, 2:]).max(1)
    needed = np.full(wide.size, np.iinfo(np.int64).max)
    np.minimum.at(needed, row, np.maximum(beyond, 0))
    return needed + labels.min_depth


def _advise(grid: BlockGrid, objects: int, wide: int, needed: Ints, factor: float) -> tuple[int | None, str | None]:
    """Advise a wider halo, where enough objects need one, and word the warning."""
    if grid.halo == 0 and len(grid) > 1:
        warning = "with a halo of 0 px every object at a seam stays cut: set blocks.halo to the width of an object"
        return None, warning
    if wide < _FEW or wide < _WORTH_A_WORD * objects:
        return None, None
    # Most of them, so that one freak doesn't set the halo for all.
    halo = -(-int(np.percentile(needed, 95, method="higher") / factor) // _STEP) * _STEP
    # Their fragments tell a width to a few pixels, so the advice may not stay at what proved too small.
    halo = max(halo, (math.ceil(grid.halo / factor) // _STEP + 1) * _STEP)
    finding = (
        f"{100 * wide / objects:.0f} % of the {objects:,} objects at seams are wider than the halo of "
        f"{grid.halo / factor:.0f} px"
    )
    if halo > min(grid.block_shape) / factor:
        warning = (
            f"{finding}, and many longer than a block: they are put together from fragments; larger blocks would help"
        )
        return None, warning
    return halo, f"{finding}: raise it to {halo} (blocks.halo)"
