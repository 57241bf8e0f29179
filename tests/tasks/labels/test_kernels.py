"""The compiled loops against the same counts made pixel by pixel with numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slidesam.tasks.labels.kernels import View, count_overlaps, describe_labels, measure_labels, overlay

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
LABELS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint32, shape, elements=st.integers(0, 5)))


def boxes_within(shape: tuple[int, int]) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Draw rectangles (y0, x0, y1, x1) of an array of this shape, empty ones too."""
    y, x = (st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted) for size in shape)
    return st.tuples(y, x).map(lambda ends: (ends[0][0], ends[1][0], ends[0][1], ends[1][1]))


def inside(shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


# The first example waits until the loops are compiled.
@settings(deadline=None)
@given(LABELS, st.data())
def test_overlaps_are_counted_per_pair(one: np.ndarray, data: st.DataObject) -> None:
    two = data.draw(arrays.arrays(np.uint32, one.shape, elements=st.integers(0, 5)))
    owns = [data.draw(boxes_within(one.shape)) for _ in range(2)]
    first, second, counts = count_overlaps(View(one), View(two), one.shape, *owns)
    expected = {
        (int(a), int(b)): [int((pair & mask).sum()) for mask in (pair, *(inside(one.shape, box) for box in owns))]
        for a in np.unique(one)
        for b in np.unique(two)
        if (pair := (one == a) & (two == b)).any() and (a or b)
    }
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), counts.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(LABELS, st.data())
def test_labels_are_described_as_by_looking(labels: np.ndarray, data: st.DataObject) -> None:
    _, flat = np.unique(np.append(0, labels), return_inverse=True)
    labels = flat[1:].reshape(labels.shape).astype(np.uint32)
    count, owned = int(labels.max()), data.draw(boxes_within(labels.shape))
    sizes, boxes, perimeter, contacts = describe_labels(labels, count, owned)
    borders: Counter[tuple[int, int]] = Counter()
    for one, two in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        differ = one != two
        pairs = np.sort(np.column_stack([one[differ], two[differ]]), axis=1)
        borders.update((int(low), int(high)) for low, high in pairs)
    for label in range(1, count + 1):
        mask = labels == label
        y, x = np.nonzero(mask)
        assert sizes[label - 1].tolist() == [mask.sum(), (mask & inside(labels.shape, owned)).sum()]
        assert boxes[label - 1].tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]
        assert perimeter[label - 1] == sum(length for pair, length in borders.items() if label in pair)
    assert {(one, two): length for one, two, length in contacts.tolist()} == {
        pair: length for pair, length in borders.items() if pair[0]
    }


@settings(deadline=None)
@given(LABELS)
def test_measures_are_sums_over_pixels(labels: np.ndarray) -> None:
    ids, measures = measure_labels(labels)
    assert ids.tolist() == [label for label in np.unique(labels).tolist() if label]
    for label, measured in zip(ids, measures.tolist(), strict=True):
        y, x = np.nonzero(labels == label)
        assert measured == [y.size, y.sum(), x.sum(), y.min(), x.min(), y.max() + 1, x.max() + 1]


@settings(deadline=None)
@given(LABELS, st.data())
def test_a_pixel_goes_to_the_smaller_object_then_to_the_lower_id(labels: np.ndarray, data: st.DataObject) -> None:
    painted = data.draw(arrays.arrays(np.uint32, labels.shape, elements=st.integers(0, 8)))
    # One label has no id: it is of another moment than the ids.
    ids = np.array(data.draw(st.lists(st.integers(-2, 8), min_size=5, max_size=5)))
    sizes = np.array(data.draw(st.lists(st.integers(1, 3), min_size=9, max_size=9)))
    expected = painted.copy()
    for at, label in np.ndenumerate(labels):
        claims = [int(owner) for owner in (painted[at], ids[label] if 0 < label < ids.size else 0) if owner > 0]
        expected[at] = min(claims, key=lambda owner: (sizes[owner], owner), default=0)
    overlay(painted, (0, 0), View(labels), labels.shape, ids, sizes)
    np.testing.assert_array_equal(painted, expected)


def test_numba_takes_no_settings_from_the_current_folder(tmp_path: Path) -> None:
    """They may name a folder whose pickles are loaded as machine code."""
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: evil\ndisable_jit: 1\nboundscheck: 1\n")
    code = (
        "from slidesam.tasks.labels import kernels; from numba.core import config; config.reload_config(); "
        "print([config.CACHE_DIR, config.DISABLE_JIT, config.BOUNDSCHECK, type(kernels._slot).__name__])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['', 0, None, 'CPUDispatcher']\n"
    assert [path.name for path in tmp_path.iterdir()] == [".numba_config.yaml"]
