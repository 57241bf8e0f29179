"""Step 3 of the rule: the label that an object's outline is taken from, or the pieces of an object that no block sees whole."""

from __future__ import annotations

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.tables import EDGE, Flags, Instances, Ints, Pairs, firsts


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
    return ordered[firsts(groups[ordered])]
