"""Step 1 of the rule: which overlapping labels match, and which ones their owner missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.tables import EDGE, Flags, Instances, Ints, Pairs, components, firsts

# A piece may match at less than `min_iou` where its twin matches the same label, and both together fit it well.
_TWIN_IOU = 2 / 3
_TOGETHER_IOU = 5 / 3
# An object seen in the halo alone isn't one that its owner missed if the owner has something that shares this much with it.
_MISSED = 0.25


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
    parts = components(alone.size, row[at >= 0], at[at >= 0])
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
    allowed[pair[order[firsts(alone[order])]]] = True
    return allowed


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
