"""Comparing segmentations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assert_same_segmentation(ours: NDArray, theirs: NDArray) -> None:
    """Equal up to a one-to-one renaming that leaves background as it is."""
    assert ours.shape == theirs.shape
    pairs = np.unique(np.stack([ours.ravel().astype(np.int64), theirs.ravel().astype(np.int64)]), axis=1)
    for side, name in enumerate(("ours", "theirs")):
        ids, counts = np.unique(pairs[side], return_counts=True)
        assert (counts == 1).all(), f"{name}: ids {ids[counts > 1][:5]} meet several of the other"
    zero = pairs[:, (pairs == 0).any(axis=0)]
    assert (zero == 0).all(), "background meets an object"


def score(found: NDArray, truth: NDArray, iou_above: float = 0.5) -> float:
    """F1 of objects that match at an IoU above `iou_above`."""
    from scipy.sparse import coo_array

    a, b = found.ravel().astype(np.int64), truth.ravel().astype(np.int64)
    shared = coo_array((np.ones(a.size, np.int64), (a, b))).tocsr().tocoo()
    area_a, area_b = np.bincount(a), np.bincount(b)
    iou = shared.data / (area_a[shared.row] + area_b[shared.col] - shared.data)
    hits = ((iou > iou_above) & (shared.row > 0) & (shared.col > 0)).sum()
    return float(2 * hits / ((area_a[1:] > 0).sum() + (area_b[1:] > 0).sum()))
