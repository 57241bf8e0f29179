"""Stains: skimage's vectors and amounts, vectors of one's own."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import combine_stains, rgb_from_hed, separate_stains
from skimage.data import immunohistochemistry

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.pixels.stains import STAINS, unmix_stains
from slidesam.tasks.segmenters.microsam.inputs import resolve
from tests.support.sam_inputs import FAST_RED, composed, rgb_slide

FAST_BLUE = (0.75, 0.62, 0.22)


def colours(*vectors: tuple[float, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(64, 64, 3) float32 light of stains in known amounts, and the (64, 64, n) amounts, half of them zero."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0, 1.5, (64, 64, len(vectors))) * (rng.random((64, 64, len(vectors))) < 0.5)
    unit = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (200 * np.exp(-amounts @ unit)).astype(np.float32), amounts


class TestStains:
    def test_vectors_are_skimages(self) -> None:
        np.testing.assert_array_equal(list(STAINS.values()), rgb_from_hed)

    @pytest.mark.parametrize(("at", "name"), list(enumerate(STAINS)))
    def test_amounts_are_skimages(self, at: int, name: str) -> None:
        image = np.maximum(immunohistochemistry(), 1)  # what is darker counts as 1 here
        density = separate_stains(image, np.linalg.inv(rgb_from_hed))[..., at] * -np.log(1e-6)
        low, high = np.percentile(density, (0.1, 99.9))  # both 0 for eosin, of which there is none
        expected = 255 * np.clip((density - low) / (high - low or 1), 0, 1)
        assert np.abs(composed(image, name)[..., 0] - expected).max() <= 0.51

    def test_what_skimage_combined_comes_back(self) -> None:
        amounts = colours(*STAINS.values())[1] / 20
        image = (combine_stains(amounts, rgb_from_hed) * 1000).astype(np.float32)
        assert np.abs(composed(image, *STAINS, slide=rgb_slide()) - bright(amounts)).max() <= 1

    @pytest.mark.parametrize(
        "own",
        [
            {"Fast Red": FAST_RED},
            {"hematoxylin": FAST_BLUE},
            {"hematoxylin": (0.6, 0.75, 0.3), "dab": (0.3, 0.5, 0.8)},
            {"hematoxylin": (1.2, 1.5, 0.6), "fast red": FAST_RED, "DAB": (0.03, 0.05, 0.08)},
        ],
    )
    def test_vectors_of_ones_own_come_back_unmixed(self, own: dict[str, tuple[float, float, float]]) -> None:
        image, amounts = colours(*own.values())
        found = composed(image, *own, slide=rgb_slide(), **own)
        assert np.abs(found[..., : len(own)] - bright(amounts)).max() <= 1

    def test_ones_own_and_a_known_one_are_unmixed_together(self) -> None:
        image, amounts = colours(STAINS["hematoxylin"], FAST_RED)
        found = composed(image, "hematoxylin", "red stain", slide=rgb_slide(), **{"red stain": FAST_RED})
        assert np.abs(found[..., :2] - bright(amounts)).max() <= 1

    def test_one_of_ones_own_that_isnt_shown_is_taken_out_all_the_same(self) -> None:
        image, amounts = colours(STAINS["hematoxylin"], FAST_RED)
        found = composed(image, "hematoxylin", slide=rgb_slide(), **{"red stain": FAST_RED})
        assert np.abs(found[..., 0] - bright(amounts)[..., 0]).max() <= 1

    def test_channels_may_come_in_another_order(self) -> None:
        image = immunohistochemistry()
        turned = composed(np.ascontiguousarray(image[..., ::-1]), *STAINS, slide=rgb_slide((2, 1, 0)))
        np.testing.assert_array_equal(turned, composed(image, *STAINS))

    @pytest.mark.parametrize(
        "vectors",
        [
            {"a": (0.0, 0.0, 0.0)},
            {"a": (float("nan"), 1.0, 1.0)},
            {"a": (0.6, 0.7, 0.3), "b": (1.21, 1.4, 0.6)},
            {"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0), "c": (1.0, 1.0, 0.0)},
        ],
    )
    def test_vectors_that_cant_be_told_apart_are_refused(self, vectors: dict[str, tuple[float, float, float]]) -> None:
        with pytest.raises(SegmenterError, match=r"segmenter\.stains: the vectors of a.* can't be unmixed"):
            resolve(("a",), vectors, rgb_slide())

    def test_four_are_too_many(self) -> None:
        own = {"a": FAST_RED, "b": FAST_BLUE}
        with pytest.raises(SegmenterError, match=r"three colours tell three stains apart, .*eosin, dab, a, b"):
            resolve(("eosin", "dab"), own, rgb_slide())


def bright(amounts: np.ndarray) -> np.ndarray:
    """(y, x, n) amounts on the scale of 8 bit, by their percentiles."""
    low, high = np.percentile(amounts, (0.1, 99.9), axis=(0, 1))
    return 255 * np.clip((amounts - low) / (high - low), 0, 1)


class TestHematoxylinAndEosin:
    @pytest.mark.parametrize("image", [immunohistochemistry(), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)])
    def test_densities_are_skimages(self, image: np.ndarray) -> None:
        density = separate_stains(np.maximum(image, 1), np.linalg.inv(rgb_from_hed))[..., :2] * -np.log(1e-6)
        lengths = np.linalg.norm(rgb_from_hed[:2], axis=1)  # vectors have length 1 here
        np.testing.assert_allclose(unmix_stains(image), density * lengths, atol=1e-5)
