"""Step 1 of the rule: which overlapping labels match, and which objects their owner missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.tables import BlockLabels, Flags, Ints, LabelPairs, number_components, run_starts

# Half of a split pair may match at less than `min_iou` where its other half matches the same label, and both together fit it.
_HALF_IOU = 2 / 3
_TOGETHER_IOU = 5 / 3
# The owner of a halo-only label's pixels didn't miss the object if it has something that shares this much with it.
_KNOWN_SHARE = 0.25


class Matches(NamedTuple):
    """What is judged of labels and pairs.

    Attributes:
        matched: (pairs,) whether the two labels are one object.
        ambiguous: (labels,) halo-only, and matching several labels that their block tells apart.
        missed: (labels,) halo-only, and to be kept, because the block that owns the pixels missed the object.
    """

    matched: Flags
    ambiguous: Flags
    missed: Flags


def judge_pairs(labels: BlockLabels, pairs: LabelPairs, rules: StitchSettings) -> Matches:
    """Decide which pairs match.

    Visible labels match at `min_iou`, and at less where one is half of a split pair whose other half matches the same label.
    A halo-only label, where labels are at their worst, is another view of an object and matches likewise; but if it covers
    several labels that their block tells apart, and which don't look like one object cut in two, it is ambiguous and matches
    the best of them only. Among halo-only labels only those match that their owners missed.
    """
    visible = labels.visible
    matched = _match_by_iou(labels, pairs, rules)
    both_visible = visible[pairs.first] & visible[pairs.second]
    both_halo_only = ~visible[pairs.first] & ~visible[pairs.second]
    ambiguous = _find_ambiguous(labels, pairs, matched & ~both_visible, visible)
    views = matched & ~both_visible & ~both_halo_only
    views &= _best_of_ambiguous(pairs, views, visible, ambiguous)
    attached = np.zeros(len(labels), bool)
    for side in (pairs.first, pairs.second):
        attached[side[views]] = True
    missed = _find_missed(labels, pairs, visible, attached, rules)
    both_missed = matched & missed[pairs.first] & missed[pairs.second]
    return Matches((matched & both_visible) | views | both_missed, ambiguous, missed)


def _match_by_iou(labels: BlockLabels, pairs: LabelPairs, rules: StitchSettings) -> Flags:
    """Return (pairs,) whether the IoU suffices, on its own or together with the other half of a split pair."""
    iou = pairs.iou
    matched = iou >= rules.min_iou
    if not labels.split_pairs.size:
        return matched
    lookup = _PairLookup.of(pairs, labels.split_pairs, iou >= _HALF_IOU * rules.min_iou)
    one, two = lookup.rows_in_common(labels.split_pairs)
    pixels = pairs.shared[lookup.pair[one]] + pairs.shared[lookup.pair[two]]
    both = lookup.area[one] + lookup.area[two] + lookup.other_area[one]
    together = pixels / (both - pixels) >= min(1.0, _TOGETHER_IOU * rules.min_iou)
    joined = together & (matched[lookup.pair[one]] | matched[lookup.pair[two]])
    matched[lookup.pair[one[joined]]] = True
    matched[lookup.pair[two[joined]]] = True
    return matched


class _PairLookup(NamedTuple):
    """Pairs from both sides, ordered by label, then by the other label.

    Attributes:
        label: (n,) the one label.
        other: (n,) the other.
        pair: (n,) number of the pair.
        area: (n,) pixels of the one on the overlap.
        other_area: (n,) of the other.
    """

    label: Ints
    other: Ints
    pair: Ints
    area: Ints
    other_area: Ints

    @classmethod
    def of(cls, pairs: LabelPairs, members: Ints, where: Flags) -> _PairLookup:
        """Make the rows of some labels, of the pairs that a mask picks."""
        top = max(pairs.first.max(initial=0), pairs.second.max(initial=0), members.max(initial=0))
        is_member = np.zeros(int(top) + 1, bool)
        is_member[members.ravel()] = True
        rows = []
        for side, (one, two) in enumerate(pairs.sides):
            at = np.flatnonzero(where & is_member[one])
            rows.append((one[at], two[at], at, pairs.area[at, side], pairs.area[at, 1 - side]))
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        return cls(*(column[order] for column in columns))

    def rows_in_common(self, couples: Ints) -> tuple[Ints, Ints]:
        """Return the rows of the first and of the second of a couple that have the other label in common, for all couples."""
        start, stop = (np.searchsorted(self.label, couples[:, 0], side=side) for side in ("left", "right"))
        one = _ranges(start, stop)
        partner = np.repeat(couples[:, 1], stop - start)
        two = _find_rows(self.label, self.other, partner, self.other[one])
        return one[two >= 0], two[two >= 0]


def _find_rows(label: Ints, other: Ints, wanted: Ints, wanted_other: Ints) -> Ints:
    """Return where pairs of numbers are in two columns ordered by both, -1 where they aren't."""
    if not label.size:
        return np.full(wanted.size, -1)
    scale = int(max(other.max(), wanted_other.max(initial=0))) + 1
    keys, wanted_keys = label * scale + other, wanted * scale + wanted_other
    at = np.minimum(np.searchsorted(keys, wanted_keys), keys.size - 1)
    return np.where(keys[at] == wanted_keys, at, -1)


def _halo_only_rows(pairs: LabelPairs, where: Flags, visible: Flags) -> tuple[Ints, Ints, Ints]:
    """Return the pairs from the side of a halo-only label: it, the other, and the pair's number."""
    rows = [(one[at], two[at], at) for one, two in pairs.sides for at in [np.flatnonzero(where & ~visible[one])]]
    one, two, pair = (np.concatenate(column) for column in zip(*rows, strict=True))
    return one, two, pair


def _find_ambiguous(labels: BlockLabels, pairs: LabelPairs, matched: Flags, visible: Flags) -> Flags:
    """Return (labels,) whether a halo-only label matches several labels of one block which aren't linked as split pairs."""
    ambiguous = np.zeros(len(labels), bool)
    label, other, _ = _halo_only_rows(pairs, matched, visible)
    cases = label * labels.offsets.size + labels.blocks_of(other)
    _, case, counts = np.unique(cases, return_inverse=True, return_counts=True)
    several = counts[case] > 1
    label, other, case = label[several], other[several], case[several]
    if not label.size:
        return ambiguous
    order = np.lexsort((other, label))
    label, other, case = label[order], other[order], case[order]
    both_ways = np.concatenate([labels.split_pairs, labels.split_pairs[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    start, stop = (np.searchsorted(both_ways[:, 0], other, side=side) for side in ("left", "right"))
    row = np.repeat(np.arange(label.size), stop - start)
    half = both_ways[_ranges(start, stop), 1]
    at = _find_rows(label, other, label[row], half)
    component = number_components(label.size, row[at >= 0], at[at >= 0])
    case_of_component = np.unique(np.column_stack([case, component]), axis=0)[:, 0]
    numbers, counts = np.unique(case_of_component, return_counts=True)
    ambiguous[label[np.isin(case, numbers[counts > 1])]] = True
    return ambiguous


def _ranges(start: Ints, stop: Ints) -> Ints:
    """Return start[0]..stop[0], start[1]..stop[1], ... in one row, half open."""
    counts = stop - start
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]) if counts.size else counts
    return np.repeat(start - before, counts) + np.arange(counts.sum())


def _best_of_ambiguous(pairs: LabelPairs, views: Flags, visible: Flags, ambiguous: Flags) -> Flags:
    """Return (pairs,) False for all but the best match of each ambiguous label."""
    allowed = np.ones(views.size, bool)
    label, other, pair = _halo_only_rows(pairs, views, visible)
    rows = ambiguous[label]
    label, other, pair = label[rows], other[rows], pair[rows]
    allowed[pair] = False
    order = np.lexsort((other, -pairs.iou[pair], label))
    allowed[pair[order[run_starts(label[order])]]] = True
    return allowed


def _find_missed(
    labels: BlockLabels, pairs: LabelPairs, visible: Flags, attached: Flags, rules: StitchSettings
) -> Flags:
    """Return (labels,) whether a block sees an object whole in its halo that the owner of the pixels doesn't have."""
    missed = ~visible & ~attached & labels.uncut
    if rules.rescue is None or not missed.any():
        return np.zeros(len(labels), bool)
    whole = labels.area[visible & labels.uncut]
    typical = np.median(whole) if whole.size else 0
    missed &= labels.area >= rules.rescue * typical
    free = np.bincount(pairs.reaching, pairs.reach[:, 1], len(labels))
    missed &= 2 * free >= labels.area
    smaller = np.minimum(labels.area[pairs.first], labels.area[pairs.second])
    is_known = pairs.shared >= _KNOWN_SHARE * smaller
    for one, two in pairs.sides:
        missed[one[is_known & visible[two]]] = False
    return missed
