"""How a stitched label image compares with the truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Score(NamedTuple):
    """One result against the truth.

    Attributes:
        objects: How many the result has.
        found: True objects of which one object of the result holds at least half.
        exact: True objects that come back pixel by pixel.
        good: True objects with an object of IoU above 0.5.
        merges: False merges: true objects that share their object of the result with another (all but one of each such group).
        splits: Objects of the result beyond the first that lie mostly in one and the same true object.
        lost: Share of the true objects' pixels that are background in the result.
        split_ids: Which true objects are split.
        merged_ids: Which true objects share an object of the result.
    """

    objects: int
    found: int
    exact: int
    good: int
    merges: int
    splits: int
    lost: float
    split_ids: NDArray[np.int64]
    merged_ids: NDArray[np.int64]


def score(truth: NDArray[np.integer], result: NDArray[np.integer]) -> Score:
    """Compares two label images of the same shape, 0 = background in both.

    Example:
        >>> score(np.array([[1, 1, 2, 2, 0]]), np.array([[1, 1, 1, 1, 2]]))[:7]
        (2, 2, 0, 0, 1, 0, 0.0)
        >>> score(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 0]]))[:7]
        (2, 1, 0, 0, 0, 1, 0.25)
    """
    area_true, area_made = np.bincount(truth.ravel()), np.bincount(result.ravel())
    both = (truth > 0) & (result > 0)
    pairs, shared = np.unique(
        truth[both].astype(np.int64) * area_made.size + result[both].astype(np.int64), return_counts=True
    )
    true, made = np.divmod(pairs, area_made.size)
    iou = shared / (area_true[true] + area_made[made] - shared)
    holds = 2 * shared >= area_true[true]
    # An object can hold half of a true one, another one the other half.
    _, first = np.unique(true[holds], return_index=True)
    holder = made[holds][first]
    lies = 2 * shared > area_made[made]
    pieces = np.bincount(true[lies], minlength=area_true.size)
    tenants = np.bincount(holder, minlength=area_made.size)
    return Score(
        objects=int(np.count_nonzero(area_made[1:])),
        found=int(first.size),
        exact=int((iou == 1).sum()),
        good=int((iou > 0.5).sum()),
        merges=int(np.maximum(tenants[1:] - 1, 0).sum()),
        splits=int(np.maximum(pieces - 1, 0).sum()),
        lost=1 - float(shared.sum() / max(1, area_true[1:].sum())),
        split_ids=np.flatnonzero(pieces > 1),
        merged_ids=true[holds][first][tenants[holder] > 1],
    )
