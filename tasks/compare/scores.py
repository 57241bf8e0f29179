"""Scores of a segmentation beside the truth, from the pixels that their objects share.

Two objects match at an IoU (shared pixels / pixels of either) of at least 0.5. Above 0.5 an object can't match two, so that no
choice has to be made. At exactly 0.5 it can, if the two are its halves: of these the one with the lower number counts.

Sources: F1, precision, recall and the "average precision" TP / (TP + FP + FN) as in StarDist's `matching` and the Data Science
Bowl 2018 (Caicedo et al., Nature Methods 16, 2019, https://doi.org/10.1038/s41592-019-0612-7), which is not the area under a
curve that object detection calls so. Panoptic quality: Kirillov et al., CVPR 2019, https://arxiv.org/abs/1801.00868, with "at
least 0.5" instead of "more than 0.5", as in StarDist.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.compare.counts import SharedCounts, count_arrays
from slidesam.tasks.labels.kernels import Ints

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Those of the Data Science Bowl 2018 and of COCO."""


@dataclass(frozen=True)
class Score:
    """How many objects match at an IoU of at least `iou`.

    Attributes:
        iou: The threshold.
        matched: Pairs that match (true positives).
        only_found: Objects of the result that match none (false positives).
        only_true: Objects of the truth that match none (false negatives).
    """

    iou: float
    matched: int
    only_found: int
    only_true: int

    @property
    def precision(self) -> float | None:
        """Share of the result's objects that match; None where neither has objects, as of all shares."""
        return self._share(self.matched, self.matched + self.only_found)

    @property
    def recall(self) -> float | None:
        """Share of the true objects that match."""
        return self._share(self.matched, self.matched + self.only_true)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two, 2 TP / (2 TP + FP + FN); the same as recognition quality, RQ."""
        return self._share(2 * self.matched, 2 * self.matched + self.only_found + self.only_true)

    @property
    def average_precision(self) -> float | None:
        """TP / (TP + FP + FN)."""
        return self._share(self.matched, self.matched + self.only_found + self.only_true)

    def _share(self, part: int, whole: int) -> float | None:
        if not self.matched + self.only_found + self.only_true:
            return None
        return part / whole if whole else 0.0


@dataclass(frozen=True)
class MatchedObjects:
    """Objects of two segmentations that are the same at an IoU of at least 0.5.

    Attributes:
        found: (n,) number of each pair's object in the result, ascending.
        true: (n,) its number in the truth.
        iou: (n,) their IoU.
        only_found: (m,) numbers of the result's objects that match none.
        only_true: (k,) numbers of the true objects that match none.
        merged: (p, 2) object of the result that holds more than half of each of several true ones, and such a true one.
        split: (q, 2) object of the truth that holds more than half of each of several of the result, and such a one.
    """

    found: Ints
    true: Ints
    iou: NDArray[np.float64]
    only_found: Ints
    only_true: Ints
    merged: Ints
    split: Ints

    def score(self, iou: float = 0.5) -> Score:
        """Count matches at an IoU of at least this, which is 0.5 or more."""
        if iou < 0.5:
            raise ValueError(f"an IoU of {iou}: below 0.5 objects may match several")
        matched = int(np.count_nonzero(self.iou >= iou))
        missed = self.found.size - matched
        return Score(iou, matched, self.only_found.size + missed, self.only_true.size + missed)

    @property
    def segmentation_quality(self) -> float | None:
        """Mean IoU of the matches (SQ); None without matches."""
        return float(self.iou.mean()) if self.iou.size else None

    @property
    def panoptic_quality(self) -> float | None:
        """SQ × RQ, the sum of the matches' IoU / (TP + FP / 2 + FN / 2)."""
        recognition = self.score().f1
        return recognition if not recognition else recognition * (self.segmentation_quality or 0.0)

    @property
    def mean_average_precision(self) -> float | None:
        """Mean of the average precision over `THRESHOLDS`."""
        precisions = [self.score(iou).average_precision for iou in THRESHOLDS]
        return float(np.mean([each for each in precisions if each is not None])) if precisions[0] is not None else None

    @property
    def merged_pairs(self) -> int:
        """Pairs of true objects of both of which one object of the result holds more than half."""
        return _count_pairs(self.merged[:, 0])

    @property
    def merged_objects(self) -> int:
        """Objects of the result that hold such pairs."""
        return int(np.unique(self.merged[:, 0]).size)

    @property
    def split_objects(self) -> int:
        """Objects of the truth that hold pairs of `split_pairs`."""
        return int(np.unique(self.split[:, 0]).size)

    @property
    def split_pairs(self) -> int:
        """Pairs of the result's objects of both of which one true object holds more than half."""
        return _count_pairs(self.split[:, 0])


def match_objects(counts: SharedCounts) -> MatchedObjects:
    """Match the objects of two segmentations.

    Example:
        >>> matches = match_objects(count_arrays(np.array([[1, 1, 2, 2, 0]]), np.array([[7, 7, 8, 8, 8]])))
        >>> matches.found.tolist(), matches.true.tolist(), matches.iou.round(2).tolist()
        ([1, 2], [7, 8], [1.0, 0.67])
    """
    found_area = counts.found.area[np.searchsorted(counts.found.ids, counts.found_ids)]
    true_area = counts.true.area[np.searchsorted(counts.true.ids, counts.true_ids)]
    iou = counts.shared / (found_area + true_area - counts.shared)
    pairs = np.flatnonzero(iou >= 0.5)
    # The pairs are by number; two halves of one object are the only ones that are told apart here.
    for ids in (counts.found_ids, counts.true_ids):
        pairs = pairs[np.sort(np.unique(ids[pairs], return_index=True)[1])]
    found, true = counts.found_ids[pairs], counts.true_ids[pairs]
    return MatchedObjects(
        found=found,
        true=true,
        iou=iou[pairs],
        only_found=np.setdiff1d(counts.found.ids, found, assume_unique=True),
        only_true=np.setdiff1d(counts.true.ids, true, assume_unique=True),
        merged=_list_repeated(counts.found_ids, counts.true_ids, 2 * counts.shared > true_area),
        split=_list_repeated(counts.true_ids, counts.found_ids, 2 * counts.shared > found_area),
    )


def match_arrays(found: NDArray[np.integer], true: NDArray[np.integer]) -> MatchedObjects:
    """Match the objects of two label images of one shape that are in memory, 0 = background.

    Example:
        >>> match_arrays(np.array([[1, 1, 0, 2]]), np.array([[5, 5, 6, 0]])).score()
        Score(iou=0.5, matched=1, only_found=1, only_true=1)
    """
    return match_objects(count_arrays(found, true))


def _list_repeated(holders: Ints, held: Ints, is_held: NDArray[np.bool_]) -> Ints:
    """List holder and held of those that hold several."""
    holders, held = holders[is_held], held[is_held]
    order = np.lexsort((held, holders))
    holders, held = holders[order], held[order]
    _, where, repeats = np.unique(holders, return_inverse=True, return_counts=True)
    is_repeated = repeats[where] > 1
    return np.column_stack([holders[is_repeated], held[is_repeated]])


def _count_pairs(holders: Ints) -> int:
    counts = np.unique(holders, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
