"""How the mosaics of blocks and of one block are compared."""

from __future__ import annotations

import numpy as np

from benchmarks.mosaics import Comparison, compare


def test_merged_and_split_pairs_are_counted() -> None:
    whole = np.zeros((40, 40), np.uint32)
    whole[2:10, 2:10], whole[2:10, 10:18], whole[20:30, 2:22], whole[32:36, 2:6] = 1, 2, 3, 4
    found = np.zeros_like(whole)
    # The first two are one, the third is two, the last is as it was.
    found[2:10, 2:18], found[20:30, 2:12], found[20:30, 12:22], found[32:36, 2:6] = 7, 5, 6, 1
    assert compare(found, whole) == Comparison(objects=4, same=0.25, more=0, merged=1, split=1)
    assert compare(whole, whole) == Comparison(objects=4, same=1.0, more=0, merged=0, split=0)
