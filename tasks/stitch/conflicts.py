"""Step 4 of the rule: which objects are suppressed, where several claim the same pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.labels.objects import DEEP
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.matches import Matches
from slidesam.tasks.stitch.outlines import OutlineChoice
from slidesam.tasks.stitch.tables import BlockLabels, Flags, Ints, LabelPairs, count_components, first_labels

# An object of which smaller ones claim more than this share would keep too little of itself.
_MAX_COVERED = 0.9


def resolve_conflicts(
    labels: BlockLabels,
    pairs: LabelPairs,
    matches: Matches,
    component: Ints,
    outlines: OutlineChoice,
    rules: StitchSettings,
) -> Flags:
    """Decide which objects are painted, where several claim the same pixels.

    An object of which better ones claim more than `max_conflict` is taken for another view of them and suppressed. Better is
    one that is seen whole, then one in fragments, then one that its owner missed; of equals the one further from the edge of
    its block's view. A pixel that two remaining objects claim goes to the smaller one. So that each keeps at least one pixel,
    an object that smaller ones cover all but wholly is suppressed too.

    Returns:
        (components,) whether the object is painted.
    """
    size = _claimed_sizes(labels, component, outlines)
    rival_one, rival_two, pixels = _find_conflicts(pairs, component, outlines)
    is_painted = np.ones(size.size, bool)
    if not rival_one.size:
        return is_painted
    involved, rows = np.unique(np.concatenate([rival_one, rival_two]), return_inverse=True)
    rival_one, rival_two = rows[: rival_one.size], rows[rival_one.size :]
    by_quality = _ranks(involved, *_qualities(labels, component, outlines, matches.missed, involved))
    limit = rules.max_conflict * size[involved]
    stays = _suppress(rival_one, rival_two, pixels, by_quality, limit, np.ones(involved.size, bool))
    # As pixels are given away: to the smaller, of equals to the lower id, which is the one whose first label comes first.
    by_size = _ranks(involved, size[involved], first_labels(component, outlines.painted)[involved])
    is_painted[involved] = _suppress(rival_one, rival_two, pixels, by_size, _MAX_COVERED * size[involved], stays)
    return is_painted


def _claimed_sizes(labels: BlockLabels, component: Ints, outlines: OutlineChoice) -> Ints:
    """Return (components,) how many pixels each claims."""
    claimed = np.where(outlines.whole, labels.area, np.where(outlines.fragment, labels.owned, 0))
    return np.bincount(component, claimed, count_components(component)).astype(np.int64)


def _find_conflicts(pairs: LabelPairs, component: Ints, outlines: OutlineChoice) -> tuple[Ints, Ints, Ints]:
    """Return two components that claim the same pixels, and how many pixels these are."""
    one_whole, two_whole = outlines.whole[pairs.first], outlines.whole[pairs.second]
    one_fragment, two_fragment = outlines.fragment[pairs.first], outlines.fragment[pairs.second]
    pixels = np.where(one_whole & two_whole, pairs.shared, 0)
    pixels += np.where(one_fragment & two_whole, pairs.shared_owned[:, 0], 0)
    pixels += np.where(one_whole & two_fragment, pairs.shared_owned[:, 1], 0)
    object_one, object_two = component[pairs.first], component[pairs.second]
    is_conflict = (pixels > 0) & (object_one != object_two)
    return object_one[is_conflict], object_two[is_conflict], pixels[is_conflict]


def _qualities(
    labels: BlockLabels, component: Ints, outlines: OutlineChoice, missed: Flags, involved: Ints
) -> tuple[Ints, Ints]:
    """Return kind (0 whole, 1 in fragments, 2 missed by its owner) and negative depth of components, so that less is better."""
    total = count_components(component)
    kind, depth = np.zeros(total, np.int64), np.zeros(total, np.int64)
    kind[component[outlines.fragment]] = 1
    kind[component[missed & outlines.whole]] = 2
    painted = np.flatnonzero(outlines.painted)
    np.maximum.at(depth, component[painted], np.minimum(labels.depth[painted], DEEP))
    return kind[involved], -depth[involved]


def _ranks(components: Ints, *keys: Ints) -> Ints:
    """Return the rank of each component when ordered by the keys, the first one first, then by number."""
    ranks = np.empty(components.size, np.int64)
    ranks[np.lexsort((components, *keys[::-1]))] = np.arange(components.size)
    return ranks


def _suppress(
    rival_one: Ints, rival_two: Ints, pixels: Ints, rank: Ints, limit: NDArray[np.floating[Any]], stays: Flags
) -> Flags:
    """Return which components stay if those of better rank that stay may claim at most `limit` pixels of each.

    As if they were treated in order of rank, but in rounds: what stays whatever happens to undecided ones is decided first.
    """
    swap = rank[rival_one] > rank[rival_two]
    worse, better = np.where(swap, rival_one, rival_two), np.where(swap, rival_two, rival_one)
    alive = stays[worse] & stays[better]
    worse, better, pixels = worse[alive], better[alive], pixels[alive]
    # 0 suppressed, 1 undecided, 2 stays
    state = np.where(stays, 1, 0)
    while (state == 1).any():
        at_most = np.bincount(worse, pixels * (state[better] > 0), rank.size)
        at_least = np.bincount(worse, pixels * (state[better] == 2), rank.size)
        undecided = state == 1
        state[undecided & (at_most <= limit)] = 2
        state[undecided & (at_least > limit)] = 0
    return np.asarray(state == 2)
