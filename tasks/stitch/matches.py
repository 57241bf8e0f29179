"""Step 1 of the rule: which overlapping labels match, and which objects their owner missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.cut_views import find_whole, keep_whole_apart
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
    the best of them only; so it is, whatever they look like, if it is cut itself. No cut label joins what other blocks see
    whole. Among halo-only labels only those match that their owners missed.
    """
    visible = labels.visible
    matched = _match_by_iou(labels, pairs, rules)
    both_visible = visible[pairs.first] & visible[pairs.second]
    both_halo_only = ~visible[pairs.first] & ~visible[pairs.second]
    ambiguous = _find_ambiguous(labels, pairs, matched & ~both_visible, visible)
    views = matched & ~both_visible & ~both_halo_only
    views &= _best_of_ambiguous(pairs, views, visible, ambiguous)
    known = keep_whole_apart(labels, pairs, (matched & both_visible) | views)
    missed = _find_missed(labels, pairs, known, rules)
    either_missed, both_missed = missed[pairs.first] | missed[pairs.second], missed[pairs.first] & missed[pairs.second]
    return Matches((known & ~either_missed) | (matched & both_missed), ambiguous, missed)


def _match_by_iou(labels: BlockLabels, pairs: LabelPairs, rules: StitchSettings) -> Flags:
    """Return (pairs,) whether the IoU suffices, on its own or together with the other half of a split pair.

    A label that is cut tells nothing about halves.
    """
    iou = pairs.iou
    matched = iou >= rules.min_iou
    if not labels.split_pairs.size:
        return matched
    lookup = _PairLookup.of(pairs, labels.split_pairs, iou >= _HALF_IOU * rules.min_iou)
    row_one, row_two = lookup.rows_in_common(labels.split_pairs)
    pixels = pairs.shared[lookup.pair[row_one]] + pairs.shared[lookup.pair[row_two]]
    area_sum = lookup.area[row_one] + lookup.area[row_two] + lookup.other_area[row_one]
    together = pixels / (area_sum - pixels) >= min(1.0, _TOGETHER_IOU * rules.min_iou)
    joined = together & (matched[lookup.pair[row_one]] | matched[lookup.pair[row_two]])
    joined &= labels.uncut[lookup.other_label[row_one]]
    matched[lookup.pair[row_one[joined]]] = True
    matched[lookup.pair[row_two[joined]]] = True
    return matched


class _PairLookup(NamedTuple):
    """Pairs from both sides, ordered by label, then by the other label.

    Attributes:
        label: (n,) the one label.
        other_label: (n,) the other label.
        pair: (n,) number of the pair.
        area: (n,) pixels of the one on the overlap.
        other_area: (n,) of the other label.
    """

    label: Ints
    other_label: Ints
    pair: Ints
    area: Ints
    other_area: Ints

    @classmethod
    def of(cls, pairs: LabelPairs, members: Ints, mask: Flags) -> _PairLookup:
        """Make the rows of some labels, of the pairs that a mask picks."""
        top = max(pairs.first.max(initial=0), pairs.second.max(initial=0), members.max(initial=0))
        is_member = np.zeros(int(top) + 1, bool)
        is_member[members.ravel()] = True
        rows = []
        for side, (label_one, label_two) in enumerate(pairs.sides):
            at = np.flatnonzero(mask & is_member[label_one])
            rows.append((label_one[at], label_two[at], at, pairs.area[at, side], pairs.area[at, 1 - side]))
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        return cls(*(column[order] for column in columns))

    def rows_in_common(self, couples: Ints) -> tuple[Ints, Ints]:
        """Return the rows of the first and of the second of a couple that have the other label in common, for all couples."""
        start, stop = (np.searchsorted(self.label, couples[:, 0], side=side) for side in ("left", "right"))
        row_one = _ranges(start, stop)
        partner = np.repeat(couples[:, 1], stop - start)
        row_two = _find_rows(self.label, self.other_label, partner, self.other_label[row_one])
        return row_one[row_two >= 0], row_two[row_two >= 0]


def _find_rows(label: Ints, other_label: Ints, wanted_label: Ints, wanted_other_label: Ints) -> Ints:
    """Return where pairs of numbers are in two columns ordered by both, -1 where they aren't."""
    if not label.size:
        return np.full(wanted_label.size, -1)
    scale = int(max(other_label.max(), wanted_other_label.max(initial=0))) + 1
    keys, wanted_keys = label * scale + other_label, wanted_label * scale + wanted_other_label
    at = np.minimum(np.searchsorted(keys, wanted_keys), keys.size - 1)
    return np.where(keys[at] == wanted_keys, at, -1)


def _halo_only_rows(pairs: LabelPairs, mask: Flags, visible: Flags) -> tuple[Ints, Ints, Ints]:
    """Return the pairs from the side of a halo-only label: it, the other, and the pair's number."""
    rows = [
        (label_one[at], label_two[at], at)
        for label_one, label_two in pairs.sides
        for at in [np.flatnonzero(mask & ~visible[label_one])]
    ]
    label_one, label_two, pair = (np.concatenate(column) for column in zip(*rows, strict=True))
    return label_one, label_two, pair


def _find_ambiguous(labels: BlockLabels, pairs: LabelPairs, matched: Flags, visible: Flags) -> Flags:
    """Return (labels,) whether a halo-only label matches several labels of one block which aren't linked as split pairs.

    Of a label that is cut no split pair is one object.
    """
    ambiguous = np.zeros(len(labels), bool)
    label, other_label, _ = _halo_only_rows(pairs, matched, visible)
    cases = label * labels.offsets.size + labels.blocks_of(other_label)
    _, case, counts = np.unique(cases, return_inverse=True, return_counts=True)
    is_repeated = counts[case] > 1
    label, other_label, case = label[is_repeated], other_label[is_repeated], case[is_repeated]
    if not label.size:
        return ambiguous
    order = np.lexsort((other_label, label))
    label, other_label, case = label[order], other_label[order], case[order]
    both_ways = np.concatenate([labels.split_pairs, labels.split_pairs[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    start, stop = (np.searchsorted(both_ways[:, 0], other_label, side=side) for side in ("left", "right"))
    row = np.repeat(np.arange(label.size), stop - start)
    half = both_ways[_ranges(start, stop), 1]
    at = np.where(labels.uncut[label[row]], _find_rows(label, other_label, label[row], half), -1)
    component = number_components(label.size, row[at >= 0], at[at >= 0])
    case_of_component = np.unique(np.column_stack([case, component]), axis=0)[:, 0]
    numbers, counts = np.unique(case_of_component, return_counts=True)
    ambiguous[label[np.isin(case, numbers[counts > 1])]] = True
    return ambiguous


def _ranges(start: Ints, stop: Ints) -> Ints:
    """Return start[0]..stop[0], start[1]..stop[1], ... in one row, half open."""
    counts = stop - start
    n_before = np.concatenate([[0], np.cumsum(counts)[:-1]]) if counts.size else counts
    return np.repeat(start - n_before, counts) + np.arange(counts.sum())


def _best_of_ambiguous(pairs: LabelPairs, views: Flags, visible: Flags, ambiguous: Flags) -> Flags:
    """Return (pairs,) False for all but the best match of each ambiguous label."""
    is_allowed = np.ones(views.size, bool)
    label, other_label, pair = _halo_only_rows(pairs, views, visible)
    rows = ambiguous[label]
    label, other_label, pair = label[rows], other_label[rows], pair[rows]
    is_allowed[pair] = False
    order = np.lexsort((other_label, -pairs.iou[pair], label))
    is_allowed[pair[order[run_starts(label[order])]]] = True
    return is_allowed


def _find_missed(labels: BlockLabels, pairs: LabelPairs, matched: Flags, rules: StitchSettings) -> Flags:
    """Return (labels,) whether a block sees an object whole in its halo that the owner of the pixels doesn't have."""
    visible = labels.visible
    component = number_components(len(labels), pairs.first[matched], pairs.second[matched])
    # A cut view of an object that others see whole may be fused with this one.
    knows = visible & (labels.uncut | ~find_whole(labels, component)[component])
    missed = ~visible & labels.uncut
    for label_one, label_two in pairs.sides:
        missed[label_one[matched & knows[label_two]]] = False
    if rules.rescue is None or not missed.any():
        return np.zeros(len(labels), bool)
    whole_area = labels.area[visible & labels.uncut]
    typical = np.median(whole_area) if whole_area.size else 0
    missed &= labels.area >= rules.rescue * typical
    free = np.bincount(pairs.reaching, pairs.reach[:, 1], len(labels))
    missed &= 2 * free >= labels.area
    smaller = np.minimum(labels.area[pairs.first], labels.area[pairs.second])
    is_known = pairs.shared >= _KNOWN_SHARE * smaller
    for label_one, label_two in pairs.sides:
        missed[label_one[is_known & knows[label_two]]] = False
    return missed
