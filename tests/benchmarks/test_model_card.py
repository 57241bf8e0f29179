"""The card of nuclei-small: its table is that of the scores, and the scores are those of the shipped weights."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import model_card
from slidesam.tasks.segmenters.microsam.weights import identify_model
from slidesam.tasks.settings.methods import MicroSam
from tests.support.weights_mirror import NEEDS_MICROSAM


def test_the_cards_table_is_that_of_the_scores() -> None:
    card = model_card.CARD.read_text()
    table = card.partition(model_card.MARKS[0])[2].partition(model_card.MARKS[1])[0].strip()
    assert table == model_card.make_table(model_card.read_scores())


@NEEDS_MICROSAM
def test_the_scores_are_of_the_shipped_weights() -> None:
    identity = identify_model(MicroSam(model="nuclei-small"), is_rgb=True)
    assert {identity.rpartition(":")[2].startswith(row["weights"]) for row in model_card.read_scores()} == {True}


def test_each_image_is_scored_by_both_methods() -> None:
    scored = [(row["id"], row["method"]) for row in model_card.read_scores()]
    assert sorted(scored) == sorted(
        (name, method) for name in {name for name, _ in scored} for method in model_card.METHODS
    )


def test_matches_are_counted_above_each_iou() -> None:
    truth, found = np.zeros((2, 30, 30), np.int64)
    truth[:10, :10], truth[20:, 20:] = 1, 2
    found[:10, :8], found[20:, :5] = 7, 9
    # IoU 0.8 with the first object; the second is missed, and one found where nothing is.
    counts = model_card.count_matches(truth, found)
    assert counts == {"true": 2, "found": 2, "matched": [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]}
    rows = [{"kind": "he", "method": "watershed", **counts}]
    images, true, objects, f1, precision = model_card.summarize(rows, "he", "watershed")
    assert (images, true, objects, f1) == (1, 2, 2, 0.5)
    assert precision == pytest.approx(6 / 10 / 3)
