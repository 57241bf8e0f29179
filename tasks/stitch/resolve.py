"""From what blocks see to the slide's objects: which labels are one object, whose outline it gets, what is suppressed.

1. `judge_pairs`        (matches.py)    which overlapping labels match
2. `join_matches`       (here)          labels joined by matches are one object, a *component*
3. `choose_outlines`    (outlines.py)   the label whose outline an object gets, or the fragments of one that no block sees whole
4. `resolve_conflicts`  (conflicts.py)  objects that others cover are suppressed; the rest are numbered 1..N

Which of two objects gets a pixel that both claim is decided while painting, by `tasks.labels.kernels.overlay`.

There is no order in which blocks are treated, so the outcome depends on none. docs/stitching.md explains the rule.
"""

from __future__ import annotations

import numpy as np

from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.conflicts import resolve_conflicts
from slidesam.tasks.stitch.matches import Matches, judge_pairs
from slidesam.tasks.stitch.outlines import choose_outlines
from slidesam.tasks.stitch.tables import (
    BlockLabels,
    Decisions,
    Flags,
    Ints,
    LabelPairs,
    Resolution,
    first_labels,
    number_components,
)


def resolve_labels(labels: BlockLabels, pairs: LabelPairs, rules: StitchSettings) -> Resolution:
    """Make the slide's objects from all labels and overlaps.

    Args:
        labels: All labels of all blocks.
        pairs: All overlaps.
        rules: The thresholds.
    """
    matches = judge_pairs(labels, pairs, rules)
    component = join_matches(labels, pairs, matches)
    outlines = choose_outlines(labels, pairs, matches, component, rules)
    stays = resolve_conflicts(labels, pairs, matches, component, outlines, rules)[component]
    is_whole, is_fragment = outlines.whole & stays, outlines.fragment & stays
    relabelling, size = _number_objects(labels, component, is_whole, is_fragment)
    decisions = Decisions(
        component=component,
        matched=matches.matched,
        whole=is_whole,
        fragment=is_fragment,
        recovered=matches.missed & (is_whole | is_fragment),
        suppressed=outlines.painted & ~stays,
        ambiguous=matches.ambiguous,
    )
    return Resolution(relabelling, size, size.size - 1, decisions)


def join_matches(labels: BlockLabels, pairs: LabelPairs, matches: Matches) -> Ints:
    """Return (labels,) the number of the component that each belongs to, 0..."""
    halves = labels.split_pairs
    if halves.size:
        halves = halves[matches.missed[halves[:, 0]] & matches.missed[halves[:, 1]]]
    node_one = np.concatenate([pairs.first[matches.matched], halves[:, 0]])
    node_two = np.concatenate([pairs.second[matches.matched], halves[:, 1]])
    return number_components(len(labels), node_one, node_two)


def _number_objects(labels: BlockLabels, component: Ints, is_whole: Flags, is_fragment: Flags) -> tuple[Ints, Ints]:
    """Return relabelling and sizes: ids 1..N by the first painted label in block order."""
    painted = np.flatnonzero(is_whole | is_fragment)
    first = first_labels(component, is_whole | is_fragment)
    starts = np.zeros(len(labels), bool)
    starts[first[component[painted]]] = True
    number = np.cumsum(starts)
    relabelling = np.zeros(len(labels), np.int64)
    relabelling[painted] = np.where(is_whole[painted], 1, -1) * number[first[component[painted]]]
    claimed = np.where(is_whole[painted], labels.area[painted], labels.owned[painted])
    size = np.bincount(np.abs(relabelling[painted]), claimed, int(starts.sum()) + 1).astype(np.int64)
    return relabelling, size
