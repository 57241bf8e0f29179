"""What variants of a micro-sam segmenter share, and which choices are worth trying."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_OPTIONS = "segmenter.options."
_THRESHOLDS = ("foreground_threshold", "boundary_distance_threshold")


class SharedResults:
    """Results by key, each computed once, with how long that took.

    Attributes:
        is_kept: Whether results are kept: not for a segmenter without variants.
    """

    def __init__(self) -> None:
        self.is_kept = False
        self._results: dict[Hashable, tuple[Any, float]] = {}

    def take(self, key: Hashable, compute: Callable[[], Any]) -> tuple[Any, float]:
        """Return a result, computed now or taken over, and the seconds that taking it over saved."""
        if key in self._results:
            return self._results[key]
        start_time = time.perf_counter()
        result = compute()
        if self.is_kept:
            self._results[key] = result, time.perf_counter() - start_time
        return result, 0.0


def copy_maps(generator: Any) -> Any:
    """Give a copy of a generator maps of its own, and return it: on tiles AIS smooths them in place."""
    maps = {name: value.copy() for name, value in vars(generator).items() if isinstance(value, np.ndarray)}
    vars(generator).update(maps)
    return generator


def suggest_grids(mode: str, *, has_other_mode: bool) -> list[dict[str, list[Any]]]:
    """Suggest grids of values: thresholds of the decoder's maps, or of AMG's masks.

    Args:
        mode: ais, apg or amg.
        has_other_mode: Whether APG is to be tried too.
    """
    if mode == "amg":
        return [{f"{_OPTIONS}pred_iou_thresh": [0.88, 0.75], f"{_OPTIONS}stability_score_thresh": [0.95, 0.85]}]
    thresholds = {f"{_OPTIONS}{name}": [0.5, 0.3, 0.7] for name in _THRESHOLDS}
    return [thresholds, *([{"segmenter.mode": ["apg"]}] if has_other_mode else [])]
