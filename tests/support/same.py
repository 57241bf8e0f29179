"""Comparing segmentations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.compare.scores import match_arrays


def assert_same_segmentation(ours: NDArray, theirs: NDArray) -> None:
    """Equal up to a one-to-one renaming that leaves background as it is."""
    assert ours.shape == theirs.shape
    pairs = np.unique(np.stack([ours.ravel().astype(np.int64), theirs.ravel().astype(np.int64)]), axis=1)
    for side, name in enumerate(("ours", "theirs")):
        ids, counts = np.unique(pairs[side], return_counts=True)
        assert (counts == 1).all(), f"{name}: ids {ids[counts > 1][:5]} meet several of the other"
    zero = pairs[:, (pairs == 0).any(axis=0)]
    assert (zero == 0).all(), "background meets an object"


def score(found: NDArray, truth: NDArray, iou: float = 0.5) -> float:
    """F1 of objects that match at an IoU of at least `iou`."""
    f1 = match_arrays(found, truth).score(iou).f1
    assert f1 is not None, "neither has objects"
    return f1
