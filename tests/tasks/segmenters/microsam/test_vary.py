"""A variant takes over embeddings and maps, and finds what a segmenter made for its settings finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slidesam.tasks.segmenters.microsam.inputs import intensity_range
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.settings.methods import MicroSam
from tests.support.microsam_fixtures import AMG_OPTIONS, APG_OPTIONS, MICROSAM_MARKS
from tests.support.sam_inputs import rgb_block

pytestmark = MICROSAM_MARKS


@pytest.mark.parametrize("tile_shape", ["off", (192, 192)])
def test_a_variant_finds_what_a_segmenter_of_its_own_finds(
    microsam_checkpoint: Path, tile_shape: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"checkpoint": str(microsam_checkpoint), "device": "cpu", "tile_shape": tile_shape}
    choices = [
        {"mode": "ais"},
        {"mode": "ais", "options": {"foreground_threshold": 0.6, "boundary_distance_threshold": 0.4}},
        {"mode": "apg", "options": APG_OPTIONS},
        {"mode": "amg", "options": AMG_OPTIONS},
        {"mode": "ais"},
    ]
    image = rgb_block()
    params = intensity_range(image, True)
    first = MicroSamSegmenter(MicroSam(**shared, mode="ais"), True)
    encoded: list[int] = []
    encode = first._encoder._encode
    monkeypatch.setattr(first._encoder, "_encode", lambda images: (encoded.append(len(images)), encode(images))[1])
    reused = []
    for choice in choices:
        settings = MicroSam(**shared, **choice)
        variant = first.vary(settings)
        assert variant is not None
        labels = variant.segment(image, params)
        np.testing.assert_array_equal(labels, MicroSamSegmenter(settings, True).segment(image, params))
        assert labels.max() > 5
        reused.append(variant.reused_seconds)
    # Each tile went through the encoder once.
    assert sum(encoded) == first.measure_work(image.shape[:2])
    assert reused[0] == 0
    assert min(reused[1:]) > 0


def test_other_weights_need_a_segmenter_of_their_own(microsam_checkpoint: Path) -> None:
    settings = MicroSam(checkpoint=str(microsam_checkpoint), mode="ais", device="cpu", tile_shape="off")
    segmenter = MicroSamSegmenter(settings, True)
    assert segmenter.vary(settings.model_copy(update={"scaling": "tile"})) is None
    (thresholds,) = segmenter.suggest_trials({})
    assert {"segmenter.options.foreground_threshold", "segmenter.options.boundary_distance_threshold"} == set(
        thresholds
    )
