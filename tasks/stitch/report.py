"""What happened at the seams: how many objects lie across, on how many blocks agree, whether the halo is wide enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.stitch.tables import EDGE, Facts, Instances, Pairs, Resolution

Ints = NDArray[np.int64]
# What is counted, per seam and for the slide, with the words that explain it.
COLUMNS = {
    "objects": "objects that a block owns in part and that reach into what the other owns",
    "matched": "of those, the ones on which both blocks agree (IoU of at least stitch.min_iou)",
    "contested": "the other block sees something else there",
    "one_sided": "the other block sees nothing there",
    "united": "painted piece by piece, because no block sees them whole or blocks disagree on their parts",
    "rescued": "missed by the block that owns them, kept as the other sees them whole",
    "dropped": "gave way to other objects that cover them",
}
# From this share of the objects at seams on a wider halo is advised, to a multiple of so many pixels.
_WORTH_A_WORD, _STEP = 0.01, 16
_FEW = 3


def make_report(
    grid: BlockGrid, instances: Instances, pairs: Pairs, resolution: Resolution, factor: float = 1.0
) -> dict[str, Any]:
    """The report, as JSON.

    Args:
        grid: The blocks on level 0.
        instances: All labels of all blocks.
        pairs: Their overlaps.
        resolution: What was made of them.
        factor: Pixels of level 0 per pixel in which `blocks.halo` is given.

    Returns:
        `totals` for the slide, each object counted once; `columns` and `rows`, a row per seam at which anything lies, with
        the ids of its two blocks first; `wide`, how many objects are wider than the halo; `halo` in pixels of level 0;
        `advised_halo` as the setting has it, None where there is nothing to advise; `warnings`, sentences.
    """
    facts = resolution.facts
    crossing, seam, group = _crossings(grid, instances, pairs, facts.group)
    where = _unique(seam, group)
    seam, group = where[:, 0], where[:, 1]
    agreed = _is_in(seam, group, *_of_pairs(grid, instances, pairs, facts.group, facts.matched))
    overlapping = _is_in(seam, group, *_of_pairs(grid, instances, pairs, facts.group, np.ones(pairs.first.size, bool)))
    total = int(facts.group.max(initial=-1)) + 1
    united, dropped = (_flags(total, facts.group[mask]) for mask in (facts.piece, facts.dropped))
    flags = {
        "objects": np.ones(seam.size, bool),
        "matched": agreed,
        "contested": ~agreed & overlapping,
        "one_sided": ~agreed & ~overlapping,
        "united": united[group],
    }
    saved_seam, saved = _rescued(grid, instances, pairs, facts.rescued, facts.group)
    counts = {name: _by_seam(seam[flag]) for name, flag in flags.items()}
    counts |= {"rescued": _by_seam(saved_seam), "dropped": _by_seam(_dropped(grid, instances, pairs, facts))}
    totals = {name: int(np.unique(group[flag]).size) for name, flag in flags.items()}
    totals["matched"] = totals["objects"] - int(np.unique(group[~agreed]).size)
    totals |= {"rescued": int(np.unique(saved).size), "dropped": int(dropped.sum())}
    wide = _wide(instances, facts.group, united[:total], crossing)
    halo = _needed_halo(grid, instances, facts.group, wide)
    report = {
        "totals": {name: totals[name] for name in COLUMNS},
        "columns": ["first", "second", *COLUMNS],
        "rows": _rows(len(grid), counts),
        "wide": int(wide.size),
        "halo": grid.halo,
    }
    return report | _advice(grid, totals["objects"], int(wide.size), halo, factor)


def _crossings(grid: BlockGrid, instances: Instances, pairs: Pairs, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """Instances that their block owns in part and that reach into what another owns; the seams; their groups."""
    across = instances.owned[pairs.reaching] > 0
    reaching, into = pairs.reaching[across], pairs.into[across]
    return reaching, _seam_number(grid, instances.blocks_of(reaching), into), groups[reaching]


def _seam_number(grid: BlockGrid, one: Ints, two: Ints) -> Ints:
    return np.minimum(one, two) * len(grid) + np.maximum(one, two)


def _of_pairs(
    grid: BlockGrid, instances: Instances, pairs: Pairs, groups: Ints, where: NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """Seam and group of both sides of the pairs that a mask picks."""
    one, two = pairs.first[where], pairs.second[where]
    seam = _seam_number(grid, instances.blocks_of(one), instances.blocks_of(two))
    return np.tile(seam, 2), np.concatenate([groups[one], groups[two]])


def _unique(seam: Ints, group: Ints) -> Ints:
    return np.unique(np.column_stack([seam, group]), axis=0)


def _is_in(seam: Ints, group: Ints, seams: Ints, groups: Ints) -> NDArray[np.bool_]:
    scale = int(max(group.max(initial=0), groups.max(initial=0))) + 1
    return np.isin(seam * scale + group, seams * scale + groups)


def _flags(total: int, groups: Ints) -> NDArray[np.bool_]:
    flags = np.zeros(total, bool)
    flags[groups] = True
    return flags


def _rescued(
    grid: BlockGrid, instances: Instances, pairs: Pairs, rescued: NDArray[np.bool_], groups: Ints
) -> tuple[Ints, Ints]:
    """Seam and group of each object that its owner missed."""
    at = rescued[pairs.reaching]
    reaching, into = pairs.reaching[at], pairs.into[at]
    found = _unique(_seam_number(grid, instances.blocks_of(reaching), into), groups[reaching])
    return found[:, 0], found[:, 1]


def _dropped(grid: BlockGrid, instances: Instances, pairs: Pairs, facts: Facts) -> Ints:
    """Seams at which objects that gave way overlap others, once per object; they may lie wholly in their block."""
    claims = facts.whole | facts.piece | facts.dropped
    rivals = claims[pairs.first] & claims[pairs.second] & (facts.group[pairs.first] != facts.group[pairs.second])
    seam, group = _of_pairs(grid, instances, pairs, facts.group, rivals)
    gave_way = np.concatenate([facts.dropped[pairs.first[rivals]], facts.dropped[pairs.second[rivals]]])
    return _unique(seam[gave_way], group[gave_way])[:, 0]


def _by_seam(seams: Ints) -> dict[int, int]:
    return dict(zip(*(column.tolist() for column in np.unique(seams, return_counts=True)), strict=True))


def _rows(blocks: int, counts: dict[str, dict[int, int]]) -> list[list[int]]:
    seams = sorted(set().union(*counts.values()))
    return [[*divmod(seam, blocks), *(counts[name].get(seam, 0) for name in COLUMNS)] for seam in seams]


def _wide(instances: Instances, groups: Ints, united: NDArray[np.bool_], crossing: Ints) -> Ints:
    """Groups painted in pieces all of which are cut by the edge of what their blocks see."""
    visible = instances.owned > 0
    whole_somewhere = np.zeros(united.size, bool)
    whole_somewhere[groups[visible & (instances.depth >= EDGE)]] = True
    at_seams = _flags(united.size, groups[crossing])
    return np.flatnonzero(united & ~whole_somewhere & at_seams)


def _needed_halo(grid: BlockGrid, instances: Instances, groups: Ints, wide: Ints) -> Ints:
    """Per wide group, with which halo a block would see it whole, as far as its pieces tell."""
    if not wide.size:
        return wide
    members = np.flatnonzero(np.isin(groups, wide) & (instances.owned > 0))
    place = np.searchsorted(wide, groups[members])
    low, high = np.full((wide.size, 2), np.iinfo(np.int64).max), np.zeros((wide.size, 2), np.int64)
    np.minimum.at(low, place, instances.box[members, :2])
    np.maximum.at(high, place, instances.box[members, 2:])
    inner = np.array([grid[int(block)].inner for block in instances.blocks_of(members)])
    beyond = np.maximum(inner[:, :2] - low[place], high[place] - inner[:, 2:]).max(1)
    needed = np.full(wide.size, np.iinfo(np.int64).max)
    np.minimum.at(needed, place, np.maximum(beyond, 0))
    return needed + EDGE


def _advice(grid: BlockGrid, objects: int, wide: int, needed: Ints, factor: float) -> dict[str, Any]:
    """A wider halo, where enough objects need one, and the sentence that says so."""
    if grid.halo == 0 and len(grid) > 1:
        words = "with a halo of 0 px every object at a seam stays cut: set blocks.halo to the width of an object"
        return {"advised_halo": None, "warnings": [words]}
    if wide < _FEW or wide < _WORTH_A_WORD * objects:
        return {"advised_halo": None, "warnings": []}
    # Most of them, so that one freak doesn't set the halo for all.
    halo = -(-int(np.percentile(needed, 95, method="higher") / factor) // _STEP) * _STEP
    what = (
        f"{100 * wide / objects:.0f} % of the {objects:,} objects at seams are wider than the halo of "
        f"{grid.halo / factor:.0f} px"
    )
    if halo > min(grid.block_shape) / factor:
        words = f"{what}, and many longer than a block: they are put together from pieces; larger blocks would help"
        return {"advised_halo": None, "warnings": [words]}
    return {"advised_halo": halo, "warnings": [f"{what}: raise it to {halo} (blocks.halo)"]}
