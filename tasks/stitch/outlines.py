"""Step 3 of the rule: the label that gives an object its outline, or the fragments of an object that no block sees whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.cut_views import count_shown_of_others
from slidesam.tasks.stitch.matches import Matches
from slidesam.tasks.stitch.tables import BlockLabels, Flags, Ints, LabelPairs, count_components, run_starts


class OutlineChoice(NamedTuple):
    """How labels are painted.

    Attributes:
        whole: (labels,) the label gives its object's outline: all of it is painted.
        fragment: (labels,) only the pixels that its block owns are painted.
    """

    whole: Flags
    fragment: Flags

    @property
    def painted(self) -> Flags:
        """(labels,) either."""
        return self.whole | self.fragment


def choose_outlines(
    labels: BlockLabels, pairs: LabelPairs, matches: Matches, component: Ints, rules: StitchSettings
) -> OutlineChoice:
    """Choose the label whose outline each object gets.

    A label can stand for its object if nothing cuts it, its block has no other label of the object, and it covers `min_cover`
    of what every other block shows of it; what a cut label shows of other objects doesn't count. Of several the one is taken
    with which the others agree best, each agreement (IoU) weighted by how far that other label is from its edge, and its own by
    its own depth; so of two views the more central one. Where no label can, the object is wider than the halo, or blocks
    disagree on its fragments: every block paints what it owns of it.
    """
    visible = labels.visible
    counted = visible | matches.missed
    total = count_components(component)
    members = counted.copy()
    for side in (pairs.first, pairs.second):
        members[side[matches.matched]] = True
    has_several = np.bincount(component[members], minlength=total) > 1
    is_whole = members & labels.uncut & ~has_several[component]
    candidates = _find_candidates(
        labels, pairs, matches.matched, component, members & has_several[component], counted, rules
    )
    is_whole[_choose_best(labels, pairs, matches.matched, component, candidates, counted)] = True
    has_whole = np.zeros(total, bool)
    has_whole[component[is_whole]] = True
    # What owners missed has no owner to paint its fragments.
    is_whole |= matches.missed & ~has_whole[component]
    return OutlineChoice(is_whole, visible & ~has_whole[component])


def _find_candidates(
    labels: BlockLabels,
    pairs: LabelPairs,
    matched: Flags,
    component: Ints,
    members: Flags,
    counted: Flags,
    rules: StitchSettings,
) -> Ints:
    """Return the labels that can stand for their object, among objects of several labels."""
    member = np.flatnonzero(members)
    _, case, counts = np.unique(
        component[member] * labels.offsets.size + labels.blocks_of(member), return_inverse=True, return_counts=True
    )
    only_one = member[(counts[case] == 1) & labels.uncut[member]]
    covers = np.zeros(len(labels), np.int64)
    needed = np.bincount(component[counted], minlength=count_components(component))
    to_cover = rules.min_cover * (labels.area - count_shown_of_others(labels, pairs, component))
    label_one, label_two, shared = pairs.first[matched], pairs.second[matched], pairs.shared[matched]
    for covering, covered in ((label_one, label_two), (label_two, label_one)):
        is_covered = counted[covered] & (shared >= to_cover[covered])
        covers += np.bincount(covering[is_covered], minlength=len(labels))
    return np.asarray(only_one[covers[only_one] >= needed[component[only_one]] - counted[only_one]])


def _choose_best(
    labels: BlockLabels, pairs: LabelPairs, matched: Flags, component: Ints, candidates: Ints, counted: Flags
) -> Ints:
    """Return the one candidate per object with which the others agree best."""
    weight = np.minimum(labels.depth, labels.halo) + 1.0
    agreement = weight.copy()
    label_one, label_two, iou = pairs.first[matched], pairs.second[matched], pairs.iou[matched]
    agreement += np.bincount(label_one, iou * weight[label_two], len(labels)) + np.bincount(
        label_two, iou * weight[label_one], len(labels)
    )
    order = np.lexsort((
        candidates, -labels.depth[candidates], -np.round(agreement[candidates], 6), ~counted[candidates],
        component[candidates]
    ))  # fmt: skip
    ordered = candidates[order]
    return ordered[run_starts(component[ordered])]
