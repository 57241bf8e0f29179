"""What a block's window cuts is no witness: it joins no two objects that blocks see whole, and it hides none.

Of an object that the window cuts, a segmenter sees a part only, and often fuses it with a neighbour. Whether the two are one
is known by the blocks that see them whole. A label that is cut still matches: it belongs to the object that it fits best, and
where no block sees an object whole, cut labels are all that there is.
"""

from __future__ import annotations

import numpy as np

from slidesam.tasks.stitch.tables import (
    BlockLabels,
    Flags,
    Ints,
    LabelPairs,
    count_components,
    number_components,
    run_starts,
)


def keep_whole_apart(labels: BlockLabels, pairs: LabelPairs, matched: Flags) -> Flags:
    """Drop the matches by which cut labels would join objects that blocks see whole.

    Labels that match and that nothing cuts are one object. Cut labels are added to it, the best match (IoU) first, as edges are
    in Kruskal's algorithm; but no edge joins two objects of which each has a visible label that nothing cuts.

    Args:
        labels: All labels of all blocks.
        pairs: Their overlaps.
        matched: (pairs,) what matches.

    Returns:
        (pairs,) the matches that stay.
    """
    rows = np.flatnonzero(matched)
    label_one, label_two = pairs.first[rows], pairs.second[rows]
    is_by_cut = ~(labels.uncut[label_one] & labels.uncut[label_two])
    component = number_components(len(labels), label_one, label_two)
    core = number_components(len(labels), label_one[~is_by_cut], label_two[~is_by_cut])
    is_whole = find_whole(labels, core)
    component_of_core = np.zeros(is_whole.size, np.int64)
    component_of_core[core] = component
    has_several = np.bincount(component_of_core[is_whole], minlength=count_components(component)) > 1
    disputed = np.flatnonzero(is_by_cut & has_several[component[label_one]])
    if not disputed.size:
        return matched
    iou = pairs.iou[rows[disputed]]
    label_one, label_two = label_one[disputed], label_two[disputed]
    # Of equals by label, so that the order of pairs decides nothing.
    order = np.lexsort((np.maximum(label_one, label_two), np.minimum(label_one, label_two), -iou))
    dropped = _grow_trees(core[label_one[order]], core[label_two[order]], is_whole)
    stays = matched.copy()
    stays[rows[disputed[order[dropped]]]] = False
    return stays


def find_whole(labels: BlockLabels, component: Ints) -> Flags:
    """Return (components,) whether a block that owns pixels of it sees it whole."""
    is_whole = np.zeros(count_components(component), bool)
    is_whole[component[labels.visible & labels.uncut]] = True
    return is_whole


def _grow_trees(node_one: Ints, node_two: Ints, is_seed: Flags) -> list[int]:
    """Join nodes by edges, in this order, to trees with at most one seed each; return the edges that would join two seeds."""
    parent = {node: node for node in (*node_one.tolist(), *node_two.tolist())}

    def find_root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    has_seed = {node: bool(is_seed[node]) for node in parent}
    dropped = []
    for edge, (one, two) in enumerate(zip(node_one.tolist(), node_two.tolist(), strict=True)):
        root_one, root_two = find_root(one), find_root(two)
        if root_one != root_two and has_seed[root_one] and has_seed[root_two]:
            dropped.append(edge)
        elif root_one != root_two:
            parent[root_two] = root_one
            has_seed[root_one] |= has_seed[root_two]
    return dropped


def count_shown_of_others(labels: BlockLabels, pairs: LabelPairs, component: Ints) -> Ints:
    """Count the pixels of cut labels that belong to other objects, as blocks that see those whole show them.

    Args:
        labels: All labels of all blocks.
        pairs: Their overlaps.
        component: (labels,) the object that each belongs to.

    Returns:
        (labels,) pixels; 0 where a label isn't cut, or isn't visible.
    """
    shown = np.zeros(len(labels), np.int64)
    is_cut, is_whole = labels.visible & ~labels.uncut, labels.visible & labels.uncut
    rows = [
        np.column_stack([cut[at], component[whole[at]], pairs.shared[at]])
        for cut, whole in pairs.sides
        for at in [np.flatnonzero(is_cut[cut] & is_whole[whole] & (component[cut] != component[whole]))]
    ]
    cut, other, shared = np.concatenate(rows).T
    # Several blocks may show the same object: the one counts that shows most of it.
    order = np.lexsort((-shared, other, cut))
    cut, other, shared = cut[order], other[order], shared[order]
    is_largest = run_starts(cut * (count_components(component) + 1) + other)
    np.add.at(shown, cut[is_largest], shared[is_largest])
    return shown
