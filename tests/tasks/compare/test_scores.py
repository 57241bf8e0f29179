"""Scores against brute force and against elf's port of StarDist's matching."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from slidesam.tasks.compare.counts import count_arrays, count_shared
from slidesam.tasks.compare.label_sources import show_array
from slidesam.tasks.compare.scores import THRESHOLDS, Score, match_arrays
from slidesam.tasks.errors import SettingsError

LABELS = arrays(np.uint32, (6, 7), elements=st.integers(0, 6))


def make_pair(seed: int, side: int = 96) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Squares, and the same shifted, cut, joined or left out."""
    rng = np.random.default_rng(seed)
    true, found = np.zeros((side, side), np.uint32), np.zeros((side, side), np.uint32)
    for number, (y, x) in enumerate(np.ndindex(side // 12, side // 12), 1):
        top, left, height, width = y * 12 + 1, x * 12 + 1, *rng.integers(3, 11, 2)
        true[top : top + height, left : left + width] = number
        dy, dx = rng.integers(-1, 3, 2)
        kind = rng.integers(6)
        number = number if kind else 0
        found[top + dy : top + dy + height, left + dx : left + dx + width] = max(number - (kind == 1), 0)
        if kind == 2:
            found[top + dy : top + dy + height, left + dx : left + dx + width // 2] = number + 1000
    return found, true


def brute_force(found: NDArray, true: NDArray) -> tuple[NDArray[np.float64], list[int], list[int]]:
    """IoU of each pair, one mask after the other, and the ids."""
    found_ids, true_ids = (np.unique(labels[labels > 0]).tolist() for labels in (found, true))
    iou = np.zeros((len(found_ids), len(true_ids)))
    for row, one in enumerate(found_ids):
        for column, other in enumerate(true_ids):
            a, b = found == one, true == other
            iou[row, column] = (a & b).sum() / (a | b).sum()
    return iou, found_ids, true_ids


def best_assignment(iou: NDArray[np.float64], threshold: float) -> float:
    """Most pairs at this threshold that an assignment can have, as StarDist finds them."""
    if not iou.size:
        return 0
    rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * min(iou.shape)))
    return int((iou[rows, columns] >= threshold).sum())


def check_against_brute_force(found: NDArray[np.uint32], true: NDArray[np.uint32]) -> None:
    matches, (iou, found_ids, true_ids) = match_arrays(found, true), brute_force(found, true)
    for threshold in THRESHOLDS:
        score, matched = matches.score(threshold), best_assignment(iou, threshold)
        assert score == Score(threshold, matched, len(found_ids) - matched, len(true_ids) - matched)
    assert set(matches.found) | set(matches.only_found) == set(found_ids)
    assert set(matches.true) | set(matches.only_true) == set(true_ids)
    for one, other, value in zip(matches.found, matches.true, matches.iou, strict=True):
        assert value == iou[found_ids.index(one), true_ids.index(other)]
    for repeated, holders, held in ((matches.merged, found, true), (matches.split, true, found)):
        pairs = [
            (int(one), int(other))
            for one in np.unique(holders[holders > 0])
            for other in np.unique(held[held > 0])
            if 2 * ((holders == one) & (held == other)).sum() > (held == other).sum()
        ]
        several = [pair for pair in pairs if sum(pair[0] == other[0] for other in pairs) > 1]
        assert [tuple(row) for row in repeated.tolist()] == several


@given(LABELS, LABELS)
@settings(max_examples=100, deadline=None)
def test_any_labels_are_scored_as_by_brute_force(found: NDArray[np.uint32], true: NDArray[np.uint32]) -> None:
    check_against_brute_force(found, true)


@pytest.mark.parametrize("seed", range(3))
def test_objects_like_real_ones_are_scored_as_by_brute_force(seed: int) -> None:
    found, true = make_pair(seed)
    check_against_brute_force(found, true)
    assert match_arrays(found, true).merged_pairs > 0
    assert match_arrays(found, true).split_pairs > 0


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_stardist(seed: int) -> None:
    from elf.evaluation.matching import matching, mean_segmentation_accuracy

    found, true = make_pair(seed)
    matches = match_arrays(found, true)
    for threshold in THRESHOLDS:
        theirs, score = matching(found, true, threshold=threshold), matches.score(threshold)
        ours = {
            "precision": score.precision, "recall": score.recall, "f1": score.f1,
            "segmentation_accuracy": score.average_precision,
        }  # fmt: skip
        assert ours == pytest.approx(theirs)
    assert matches.mean_average_precision == pytest.approx(mean_segmentation_accuracy(found, true, THRESHOLDS))


def test_panoptic_quality_is_that_of_its_definition() -> None:
    found, true = make_pair(3)
    matches, (iou, found_ids, true_ids) = match_arrays(found, true), brute_force(found, true)
    assigned = iou[linear_sum_assignment(-iou)]
    good = assigned[assigned >= 0.5]
    assert matches.segmentation_quality == pytest.approx(good.mean())
    misses = len(found_ids) + len(true_ids) - 2 * good.size
    assert matches.panoptic_quality == pytest.approx(good.sum() / (good.size + misses / 2))


@given(LABELS)
@settings(max_examples=30, deadline=None)
def test_labels_beside_themselves_are_perfect(labels: NDArray[np.uint32]) -> None:
    matches = match_arrays(labels, labels)
    expected = 1.0 if labels.any() else None
    assert {matches.score(iou).f1 for iou in THRESHOLDS} == {expected}
    assert [matches.panoptic_quality, matches.mean_average_precision] == [expected, expected]
    assert [matches.merged_pairs, matches.split_pairs, matches.only_found.size, matches.only_true.size] == [0, 0, 0, 0]


@given(LABELS, LABELS, st.permutations(range(1, 7)))
@settings(max_examples=30, deadline=None)
def test_other_numbers_change_nothing(found: NDArray[np.uint32], true: NDArray[np.uint32], order: list[int]) -> None:
    renumbered = np.array([0, *order], np.uint32)[found] * 700_000_001
    renumbered[found == 0] = 0
    one, other = match_arrays(found, true), match_arrays(renumbered, true)
    assert [one.score(iou) for iou in THRESHOLDS] == [other.score(iou) for iou in THRESHOLDS]
    assert (one.merged_pairs, one.split_pairs) == (other.merged_pairs, other.split_pairs)


@given(st.integers(0, 9), st.tuples(st.integers(1, 50), st.integers(1, 50)))
@settings(max_examples=20, deadline=None)
def test_any_tiles_give_the_same(seed: int, tile: tuple[int, int]) -> None:
    found, true = make_pair(seed, 48)
    tiled, sampled = count_shared(show_array(found), show_array(true), tile, 48)
    whole = count_arrays(found, true)
    for side in ("found", "true"):
        ours, expected = getattr(tiled, side), getattr(whole, side)
        for name in ("ids", "area", "sums", "boxes"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
    for name in ("found_ids", "true_ids", "shared"):
        np.testing.assert_array_equal(getattr(tiled, name), getattr(whole, name))
    np.testing.assert_array_equal(sampled.found, found)
    np.testing.assert_array_equal(sampled.true, true)


def test_of_two_halves_the_lower_number_matches() -> None:
    whole, halves = np.array([[5, 5, 5, 5]]), np.array([[2, 2, 1, 1]])
    for found, true in ((whole, halves), (halves, whole)):
        matches = match_arrays(found, true)
        assert matches.score() == Score(0.5, 1, (found == halves).all(), (true == halves).all())
        assert sorted([*matches.found, *matches.true]) == [1, 5]
        assert matches.score(0.55).matched == 0


def test_nothing_beside_something_is_zero_and_beside_nothing_undefined() -> None:
    nothing, something = np.zeros((3, 3), np.uint32), np.ones((3, 3), np.uint32)
    for matches in (match_arrays(nothing, something), match_arrays(something, nothing)):
        score = matches.score()
        assert [score.precision, score.recall, score.f1, score.average_precision, matches.panoptic_quality] == [0] * 5
    assert match_arrays(nothing, nothing).score().precision is None
    with pytest.raises(ValueError, match=r"below 0\.5"):
        match_arrays(something, something).score(0.4)


def test_labels_that_cannot_be_counted_are_refused() -> None:
    largest = np.array([[2**32 - 2, 0]])
    assert match_arrays(largest, largest).found.tolist() == [2**32 - 2]
    for labels in (largest + 1, largest - 2**32, largest == 0, largest / 2):
        with pytest.raises(SettingsError, match=r"number (its|the) objects"):
            match_arrays(largest, labels)
    with pytest.raises(SettingsError, match="one shape"):
        match_arrays(largest, largest.T)
