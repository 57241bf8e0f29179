"""From what blocks see to the slide's objects: which labels are one object, whose outline it gets, who gives way.

1. `judge`     which overlapping labels match
2. `group`     labels joined by matches are one object
3. `choose`    the one prediction that an object's outline is taken from, or the pieces of one that no block sees whole
4. `settle`    objects that others cover are dropped; the rest are numbered 1..N

Labels of all blocks are numbered through (an *instance*: block k's label i is `offsets[k] + i - 1`), and every table is
an array over instances or over pairs of them: a few hundred bytes per object, no pixel. There is no order in which
blocks are treated, so the outcome depends on none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slidesam.tasks.labels.objects import DEEP
from slidesam.tasks.settings.sections import StitchSettings

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
# An object this close to the edge of what its block sees may go on beyond it; segmenters often leave the last pixel empty.
EDGE = 2
# A piece may match at less than `min_iou` where its twin matches the same label, and both together fit it well.
_TWIN_IOU = 2 / 3
_TOGETHER_IOU = 5 / 3
# An object seen in the halo alone isn't one that its owner missed if the owner has something that shares this much with it.
_MISSED = 0.25


@dataclass(frozen=True)
class Instances:
    """All labels of all blocks.

    Attributes:
        offsets: (blocks + 1,) first instance of each block.
        area: (n,) pixels.
        owned: (n,) pixels in the block's inner region.
        depth: (n,) pixels to the nearest edge of what the block sees.
        box: (n, 4) y0, x0, y1, x1 on the slide.
        twins: (k, 2) instances of one block that look like one object cut in two.
        halo: In pixels.
    """

    offsets: Ints
    area: NDArray[np.integer[Any]]
    owned: NDArray[np.integer[Any]]
    depth: NDArray[np.integer[Any]]
    box: NDArray[np.integer[Any]]
    twins: Ints
    halo: int

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def blocks_of(self, instances: Ints) -> Ints:
        """Which block each of these instances is of."""
        return np.searchsorted(self.offsets, instances, side="right") - 1


@dataclass(frozen=True)
class Pairs:
    """Instances of two blocks that share pixels, and labels that reach into what another block owns.

    Attributes:
        first: (n,) instances.
        second: (n,) instances of another block.
        shared: (n,) pixels that both have.
        shared_owned: (n, 2) of those, on what the first's block owns, and the second's.
        area: (n, 2) pixels of both on the overlap of their blocks.
        reaching: (m,) instances.
        into: (m,) the block that they reach into.
        reach: (m, 2) their pixels in that block's inner region, and of those the ones where it sees background.
    """

    first: Ints
    second: Ints
    shared: Ints
    shared_owned: Ints
    area: Ints
    reaching: Ints
    into: Ints
    reach: Ints

    @property
    def iou(self) -> NDArray[np.float64]:
        """(n,) intersection over union on the overlap."""
        return np.asarray(self.shared / (self.area.sum(1) - self.shared), np.float64)


class Resolution(NamedTuple):
    """The slide's objects.

    Attributes:
        relabelling: (instances,) int64 id in the slide: positive where the whole label is painted, wherever it lies; negative
            where only the part of it that its block owns is painted; 0 where nothing is.
        size: (objects + 1,) int64 pixels that each object claims, by id.
        objects: N, the largest id.
        facts: What the seam report is made from.
    """

    relabelling: Ints
    size: Ints
    objects: int
    facts: Facts


@dataclass
class Facts:
    """What was found on the way, per instance or per pair.

    Attributes:
        group: (n,) number of the object that an instance belongs to, before numbering.
        matched: (pairs,) whether the two are judged one object.
        whole: (n,) the instance gives its object's outline.
        piece: (n,) the instance is painted where its block owns it, as no block sees the object whole.
        rescued: (n,) seen in the halo alone, and kept, because its owner missed it.
        dropped: (n,) its object gave way to others that cover it.
        contested: (n,) seen in the halo alone, and overlapping several labels that their block tells apart.
    """

    group: Ints
    matched: Flags
    whole: Flags
    piece: Flags
    rescued: Flags
    dropped: Flags
    contested: Flags = field(default_factory=lambda: np.zeros(0, bool))


def resolve(instances: Instances, pairs: Pairs, rules: StitchSettings) -> Resolution:
    """The slide's objects from all labels and overlaps.

    Args:
        instances: All labels of all blocks.
        pairs: All overlaps.
        rules: The thresholds.
    """
    matched, contested, missed = judge(instances, pairs, rules)
    groups = group(instances, pairs, matched, missed)
    whole, piece = choose(instances, pairs, matched, groups, missed, rules)
    kept = settle(instances, pairs, groups, whole, piece, missed, rules)
    active = (whole | piece) & kept[groups]
    relabelling, size = _numbered(instances, groups, active, whole)
    facts = Facts(
        groups, matched, whole & active, piece & active, missed & active, (whole | piece) & ~active, contested
    )
    return Resolution(relabelling, size, size.size - 1, facts)


# ------------------------------------------------------------------------------------------------------------ 1. judge


def judge(instances: Instances, pairs: Pairs, rules: StitchSettings) -> tuple[Flags, Flags, Flags]:
    """Which pairs match.

    Labels with pixels in their own block's inner region (*visible*) match at `min_iou`, and at less where one is a
    piece whose twin matches the same label. A label in the halo alone, where labels are at their worst, is another view
    of an object and matches likewise; but if it covers several labels that their block tells apart, and which don't
    look like one object cut in two, it is contested and matches the best of them only. Among labels in the halo alone
    only those match that their owners missed.

    Returns:
        (pairs,) matches; (instances,) contested; (instances,) missed by their owner, and to be kept.
    """
    visible = instances.owned > 0
    matched = _heal_twins(instances, pairs, rules)
    seen = visible[pairs.first] & visible[pairs.second]
    alone = ~visible[pairs.first] & ~visible[pairs.second]
    contested = _contested(instances, pairs, matched & ~seen, visible)
    views = matched & ~seen & ~alone
    views &= _best_of_contested(pairs, views, visible, contested)
    attached = np.zeros(len(instances), bool)
    for side in (pairs.first, pairs.second):
        attached[side[views]] = True
    missed = _missed(instances, pairs, visible, attached, rules)
    both_missed = matched & missed[pairs.first] & missed[pairs.second]
    return (matched & seen) | views | both_missed, contested, missed


def _heal_twins(instances: Instances, pairs: Pairs, rules: StitchSettings) -> Flags:
    """(pairs,) whether the IoU suffices, on its own or together with a twin's."""
    iou = pairs.iou
    matched = iou >= rules.min_iou
    if not instances.twins.size:
        return matched
    rows = _Rows.of(pairs, instances.twins, iou >= _TWIN_IOU * rules.min_iou)
    one, two = rows.of_both(instances.twins)
    pixels = pairs.shared[rows.pair[one]] + pairs.shared[rows.pair[two]]
    both = rows.area[one] + rows.area[two] + rows.other_area[one]
    together = pixels / (both - pixels) >= min(1.0, _TOGETHER_IOU * rules.min_iou)
    healed = together & (matched[rows.pair[one]] | matched[rows.pair[two]])
    matched[rows.pair[one[healed]]] = True
    matched[rows.pair[two[healed]]] = True
    return matched


class _Rows(NamedTuple):
    """Pairs from both sides, ordered by instance, then by the other: for looking up.

    Attributes:
        instance: (n,) the one.
        other: (n,) the other.
        pair: (n,) which pair.
        area: (n,) pixels of the one on the overlap.
        other_area: (n,) of the other.
    """

    instance: Ints
    other: Ints
    pair: Ints
    area: Ints
    other_area: Ints

    @classmethod
    def of(cls, pairs: Pairs, members: Ints, where: Flags) -> _Rows:
        """The rows of some instances, of the pairs that a mask picks."""
        wanted = np.zeros(
            int(max(pairs.first.max(initial=0), pairs.second.max(initial=0), members.max(initial=0))) + 1, bool
        )
        wanted[members.ravel()] = True
        found = []
        for side, one, two in ((0, pairs.first, pairs.second), (1, pairs.second, pairs.first)):
            at = np.flatnonzero(where & wanted[one])
            found.append((one[at], two[at], at, pairs.area[at, side], pairs.area[at, 1 - side]))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        return cls(*(column[order] for column in columns))

    def of_both(self, couples: Ints) -> tuple[Ints, Ints]:
        """Rows of the first of a couple and of the second that have the other in common, for all couples."""
        start, stop = (np.searchsorted(self.instance, couples[:, 0], side=side) for side in ("left", "right"))
        counts = stop - start
        one = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        wanted = np.repeat(couples[:, 1], counts)
        two = _find(self.instance, self.other, wanted, self.other[one])
        return one[two >= 0], two[two >= 0]


def _find(instance: Ints, other: Ints, wanted: Ints, wanted_other: Ints) -> Ints:
    """Where pairs of numbers are in two columns ordered by both, -1 where they aren't."""
    if not instance.size:
        return np.full(wanted.size, -1)
    scale = int(max(other.max(), wanted_other.max(initial=0))) + 1
    keys, wanted_keys = instance * scale + other, wanted * scale + wanted_other
    at = np.minimum(np.searchsorted(keys, wanted_keys), keys.size - 1)
    return np.where(keys[at] == wanted_keys, at, -1)


def _halo_rows(pairs: Pairs, where: Flags, visible: Flags) -> tuple[Ints, Ints, Ints]:
    """Pairs from the side of a label in the halo alone: it, the other, which pair."""
    sides = ((pairs.first, pairs.second), (pairs.second, pairs.first))
    found = [(one[at], two[at], at) for one, two in sides for at in [np.flatnonzero(where & ~visible[one])]]
    one, two, pair = (np.concatenate(column) for column in zip(*found, strict=True))
    return one, two, pair


def _contested(instances: Instances, pairs: Pairs, matched: Flags, visible: Flags) -> Flags:
    """(instances,) labels in the halo alone that match several labels of one block which don't hang together as twins."""
    contested = np.zeros(len(instances), bool)
    alone, other, _ = _halo_rows(pairs, matched, visible)
    cases = alone * instances.offsets.size + instances.blocks_of(other)
    _, case, counts = np.unique(cases, return_inverse=True, return_counts=True)
    several = counts[case] > 1
    alone, other, case = alone[several], other[several], case[several]
    if not alone.size:
        return contested
    order = np.lexsort((other, alone))
    alone, other, case = alone[order], other[order], case[order]
    both_ways = np.concatenate([instances.twins, instances.twins[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    start, stop = (np.searchsorted(both_ways[:, 0], other, side=side) for side in ("left", "right"))
    row = np.repeat(np.arange(alone.size), stop - start)
    twin = both_ways[_ranges(start, stop), 1]
    at = _find(alone, other, alone[row], twin)
    parts = _components(alone.size, row[at >= 0], at[at >= 0])
    pieces = np.unique(np.column_stack([case, parts]), axis=0)[:, 0]
    which, counts = np.unique(pieces, return_counts=True)
    contested[alone[np.isin(case, which[counts > 1])]] = True
    return contested


def _ranges(start: Ints, stop: Ints) -> Ints:
    """start[0]..stop[0], start[1]..stop[1], ... in one row, half open."""
    counts = stop - start
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]) if counts.size else counts
    return np.repeat(start - before, counts) + np.arange(counts.sum())


def _best_of_contested(pairs: Pairs, views: Flags, visible: Flags, contested: Flags) -> Flags:
    """(pairs,) False for all but the best match of each contested label."""
    allowed = np.ones(views.size, bool)
    alone, other, pair = _halo_rows(pairs, views, visible)
    of_contested = contested[alone]
    alone, other, pair = alone[of_contested], other[of_contested], pair[of_contested]
    allowed[pair] = False
    order = np.lexsort((other, -pairs.iou[pair], alone))
    allowed[pair[order[_firsts(alone[order])]]] = True
    return allowed


def _firsts(ordered: Ints) -> Flags:
    """Where a run of equal numbers begins."""
    return np.concatenate([[True], ordered[1:] != ordered[:-1]]) if ordered.size else np.zeros(0, bool)


def _missed(instances: Instances, pairs: Pairs, visible: Flags, attached: Flags, rules: StitchSettings) -> Flags:
    """(instances,) objects that a block sees whole in its halo, and that their owner doesn't have."""
    missed = ~visible & ~attached & (instances.depth >= EDGE)
    if rules.rescue is None or not missed.any():
        return np.zeros(len(instances), bool)
    whole = instances.area[visible & (instances.depth >= EDGE)]
    typical = np.median(whole) if whole.size else 0
    missed &= instances.area >= rules.rescue * typical
    free = np.bincount(pairs.reaching, pairs.reach[:, 1], len(instances))
    missed &= 2 * free >= instances.area
    smaller = np.minimum(instances.area[pairs.first], instances.area[pairs.second])
    share = pairs.shared >= _MISSED * smaller
    for one, two in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        missed[one[share & visible[two]]] = False
    return missed


# ------------------------------------------------------------------------------------------------------------ 2. group


def group(instances: Instances, pairs: Pairs, matched: Flags, missed: Flags) -> Ints:
    """(instances,) number of the object that each belongs to, 0..."""
    twins = instances.twins
    if twins.size:
        twins = twins[missed[twins[:, 0]] & missed[twins[:, 1]]]
    one = np.concatenate([pairs.first[matched], twins[:, 0]])
    two = np.concatenate([pairs.second[matched], twins[:, 1]])
    return _components(len(instances), one, two)


def _components(count: int, one: Ints, two: Ints) -> Ints:
    """(count,) number of the connected component of each node."""
    graph = coo_array((np.ones(one.size, bool), (one, two)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


# ----------------------------------------------------------------------------------------------------------- 3. choose


def choose(
    instances: Instances, pairs: Pairs, matched: Flags, groups: Ints, missed: Flags, rules: StitchSettings
) -> tuple[Flags, Flags]:
    """Whose outline each object gets.

    A label can stand for its object if nothing cuts it, its block sees no other part of the object, and it covers
    `min_cover` of what every other block shows of it. Of several the one is taken with which the others agree best,
    each agreement (IoU) weighted by how far that other view is from its edge, and its own word by its own depth; so of
    two views the more central one. Where no label can, the object is wider than the halo, or blocks disagree on its
    parts: every block paints what it owns of it.

    Returns:
        (instances,) the label is painted as a whole; (instances,) only where its block owns it.
    """
    visible = instances.owned > 0
    counted = visible | missed
    total = int(groups.max(initial=-1)) + 1
    members = counted.copy()
    for side in (pairs.first, pairs.second):
        members[side[matched]] = True
    several = np.bincount(groups[members], minlength=total) > 1
    uncut = instances.depth >= EDGE
    whole = members & uncut & ~several[groups]
    candidates = _candidates(instances, pairs, matched, groups, members & several[groups], counted, rules)
    chosen = _best_candidates(instances, pairs, matched, groups, candidates, counted)
    whole[chosen] = True
    has_whole = np.zeros(total, bool)
    has_whole[groups[whole]] = True
    # What owners missed has no owner to paint its pieces.
    whole |= missed & ~has_whole[groups]
    return whole, visible & ~has_whole[groups]


def _candidates(
    instances: Instances,
    pairs: Pairs,
    matched: Flags,
    groups: Ints,
    members: Flags,
    counted: Flags,
    rules: StitchSettings,
) -> Ints:
    """Instances that can stand for their object, among objects that several labels show."""
    shown = np.flatnonzero(members)
    _, case, counts = np.unique(
        groups[shown] * instances.offsets.size + instances.blocks_of(shown), return_inverse=True, return_counts=True
    )
    alone = shown[(counts[case] == 1) & (instances.depth[shown] >= EDGE)]
    covers = np.zeros(len(instances), np.int64)
    needed = np.bincount(groups[counted], minlength=int(groups.max(initial=-1)) + 1)
    one, two, shared = pairs.first[matched], pairs.second[matched], pairs.shared[matched]
    for by, of in ((one, two), (two, one)):
        covered = counted[of] & (shared >= rules.min_cover * instances.area[of])
        covers += np.bincount(by[covered], minlength=len(instances))
    return np.asarray(alone[covers[alone] >= needed[groups[alone]] - counted[alone]])


def _best_candidates(
    instances: Instances, pairs: Pairs, matched: Flags, groups: Ints, candidates: Ints, counted: Flags
) -> Ints:
    """The one per object that the others agree with best."""
    weight = np.minimum(instances.depth, instances.halo) + 1.0
    agreement = weight.copy()
    one, two, iou = pairs.first[matched], pairs.second[matched], pairs.iou[matched]
    agreement += np.bincount(one, iou * weight[two], len(instances)) + np.bincount(
        two, iou * weight[one], len(instances)
    )
    order = np.lexsort((
        candidates, -instances.depth[candidates], -np.round(agreement[candidates], 6), ~counted[candidates],
        groups[candidates]
    ))  # fmt: skip
    ordered = candidates[order]
    return ordered[_firsts(groups[ordered])]


# ----------------------------------------------------------------------------------------------------------- 4. settle


def settle(
    instances: Instances, pairs: Pairs, groups: Ints, whole: Flags, piece: Flags, missed: Flags, rules: StitchSettings
) -> Flags:
    """Which objects stay, by group, where several claim the same pixels.

    An object of which more than `max_conflict` is claimed by better ones is taken for another view of them and dropped.
    Better is one that is seen whole, then one in pieces, then one that its owner missed; of equals the one further from
    the edge of its block's view. Of what stays the smaller object gets a pixel that both claim. So that each keeps at
    least one, an object that smaller ones cover all but wholly is dropped too.

    Returns:
        (groups,) which ones are painted.
    """
    total = int(groups.max(initial=-1)) + 1
    size = _sizes(instances, groups, whole, piece, total)
    one, two, pixels = _conflicts(pairs, groups, whole, piece)
    kept = np.ones(total, bool)
    if not one.size:
        return kept
    involved, rows = np.unique(np.concatenate([one, two]), return_inverse=True)
    one, two = rows[: one.size], rows[one.size :]
    quality = _qualities(instances, groups, whole, piece, missed, involved, total)
    by_quality = _ranks(involved, *quality)
    stays = _give_way(one, two, pixels, by_quality, rules.max_conflict * size[involved], np.ones(involved.size, bool))
    # As pixels are given away: to the smaller, of equals to the lower id, which is the one whose first label comes first.
    by_size = _ranks(involved, size[involved], _first_labels(groups, whole | piece, total)[involved])
    stays = _give_way(one, two, pixels, by_size, 0.9 * size[involved], stays)
    kept[involved] = stays
    return kept


def _sizes(instances: Instances, groups: Ints, whole: Flags, piece: Flags, total: int) -> Ints:
    """(total,) pixels that each group claims."""
    claimed = np.where(whole, instances.area, np.where(piece, instances.owned, 0))
    return np.bincount(groups, claimed, total).astype(np.int64)


def _conflicts(pairs: Pairs, groups: Ints, whole: Flags, piece: Flags) -> tuple[Ints, Ints, Ints]:
    """Pixels that two groups claim both: the groups, and how many."""
    one_whole, two_whole = whole[pairs.first], whole[pairs.second]
    one_piece, two_piece = piece[pairs.first], piece[pairs.second]
    pixels = np.where(one_whole & two_whole, pairs.shared, 0)
    pixels += np.where(one_piece & two_whole, pairs.shared_owned[:, 0], 0)
    pixels += np.where(one_whole & two_piece, pairs.shared_owned[:, 1], 0)
    one, two = groups[pairs.first], groups[pairs.second]
    real = (pixels > 0) & (one != two)
    return one[real], two[real], pixels[real]


def _qualities(
    instances: Instances, groups: Ints, whole: Flags, piece: Flags, missed: Flags, involved: Ints, total: int
) -> tuple[Ints, Ints]:
    """Of the groups involved: kind (0 whole, 1 in pieces, 2 missed by its owner), and depth, negative, so that less is better."""
    kind, depth = np.zeros(total, np.int64), np.zeros(total, np.int64)
    kind[groups[piece]] = 1
    kind[groups[missed & whole]] = 2
    active = np.flatnonzero(whole | piece)
    np.maximum.at(depth, groups[active], np.minimum(instances.depth[active], DEEP))
    return kind[involved], -depth[involved]


def _ranks(groups: Ints, *keys: Ints) -> Ints:
    """Place of each group when ordered by the keys, the first one first, then by number."""
    ranks = np.empty(groups.size, np.int64)
    ranks[np.lexsort((groups, *keys[::-1]))] = np.arange(groups.size)
    return ranks


def _give_way(one: Ints, two: Ints, pixels: Ints, rank: Ints, limit: NDArray[np.floating[Any]], stays: Flags) -> Flags:
    """Which groups stay if each drops out once those of better rank that stay claim more than `limit` pixels of it.

    As if they were treated in order of rank, but in rounds: what stays whatever the undecided do is settled first.
    """
    swap = rank[one] > rank[two]
    worse, better = np.where(swap, one, two), np.where(swap, two, one)
    alive = stays[worse] & stays[better]
    worse, better, pixels = worse[alive], better[alive], pixels[alive]
    # 0 dropped, 1 undecided, 2 stays
    state = np.where(stays, 1, 0)
    while (state == 1).any():
        at_most = np.bincount(worse, pixels * (state[better] > 0), rank.size)
        for_sure = np.bincount(worse, pixels * (state[better] == 2), rank.size)
        undecided = state == 1
        state[undecided & (at_most <= limit)] = 2
        state[undecided & (for_sure > limit)] = 0
    return np.asarray(state == 2)


def _first_labels(groups: Ints, active: Flags, total: int) -> Ints:
    """(total,) the first active instance of each group, 0 where there is none."""
    instances = np.flatnonzero(active)[::-1]
    first = np.zeros(total, np.int64)
    # Of repeated indices the last one written stays.
    first[groups[instances]] = instances
    return first


def _numbered(instances: Instances, groups: Ints, active: Flags, whole: Flags) -> tuple[Ints, Ints]:
    """Relabelling and sizes: ids 1..N by the first painted label in block order."""
    painted = np.flatnonzero(active)
    first = _first_labels(groups, active, int(groups.max(initial=-1)) + 1)
    starts = np.zeros(len(instances), bool)
    starts[first[groups[painted]]] = True
    number = np.cumsum(starts)
    relabelling = np.zeros(len(instances), np.int64)
    relabelling[painted] = np.where(whole[painted], 1, -1) * number[first[groups[painted]]]
    claimed = np.where(whole[painted], instances.area[painted], instances.owned[painted])
    size = np.bincount(np.abs(relabelling[painted]), claimed, int(starts.sum()) + 1).astype(np.int64)
    return relabelling, size
