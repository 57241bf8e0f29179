"""Step 4 of the rule: of objects that claim the same pixels, which ones stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.labels.objects import DEEP
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.tables import Flags, Instances, Ints, Pairs, first_labels


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
    by_size = _ranks(involved, size[involved], first_labels(groups, whole | piece, total)[involved])
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
