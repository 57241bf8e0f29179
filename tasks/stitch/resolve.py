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

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.conflicts import settle
from slidesam.tasks.stitch.judge import judge
from slidesam.tasks.stitch.outlines import choose
from slidesam.tasks.stitch.tables import Facts, Flags, Instances, Ints, Pairs, Resolution, components, first_labels


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


def group(instances: Instances, pairs: Pairs, matched: Flags, missed: Flags) -> Ints:
    """(instances,) number of the object that each belongs to, 0..."""
    twins = instances.twins
    if twins.size:
        twins = twins[missed[twins[:, 0]] & missed[twins[:, 1]]]
    one = np.concatenate([pairs.first[matched], twins[:, 0]])
    two = np.concatenate([pairs.second[matched], twins[:, 1]])
    return components(len(instances), one, two)


def _numbered(instances: Instances, groups: Ints, active: Flags, whole: Flags) -> tuple[Ints, Ints]:
    """Relabelling and sizes: ids 1..N by the first painted label in block order."""
    painted = np.flatnonzero(active)
    first = first_labels(groups, active, int(groups.max(initial=-1)) + 1)
    starts = np.zeros(len(instances), bool)
    starts[first[groups[painted]]] = True
    number = np.cumsum(starts)
    relabelling = np.zeros(len(instances), np.int64)
    relabelling[painted] = np.where(whole[painted], 1, -1) * number[first[groups[painted]]]
    claimed = np.where(whole[painted], instances.area[painted], instances.owned[painted])
    size = np.bincount(np.abs(relabelling[painted]), claimed, int(starts.sum()) + 1).astype(np.int64)
    return relabelling, size
