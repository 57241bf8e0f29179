"""What SAM sees: channels and stains by name, slide-wide ranges, and pixels that depend on themselves alone."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import immunohistochemistry

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import jsonable_params
from slidesam.tasks.segmenters.microsam.inputs import (
    check_inputs,
    compose,
    intensity_range,
    pick,
    ranges,
    resolve,
    to_rgb8,
)
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.slides.facts import Slide
from tests.support.sam_inputs import FAST_RED, NAMES, a_slide, composed, rgb_slide


def noise(dtype: str, shape: tuple[int, ...] = (90, 70, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        image = rng.gamma(2, 300, shape).astype(dtype)
        image[rng.random(shape) < 0.01] = np.nan
        image[rng.random(shape) < 0.01] = np.inf
        return image
    top = min(np.iinfo(dtype).max, 70_000)
    return rng.integers(max(np.iinfo(dtype).min, -70_000), top, shape, endpoint=True).astype(dtype)


class TestPixels:
    INPUTS = (
        *(("hematoxylin",), ("Hematoxylin", "eosin", "DAB"), ("hematoxylin+dab", "green"), ("red",), ("0+2", "1")),
        ("blue", "green", "red"),
    )

    @settings(max_examples=150, deadline=None)
    @given(
        dtype=st.sampled_from(["u1", "u2", ">u2", "i2", "u4", "i4", "f4", "f8"]),
        inputs=st.sampled_from(INPUTS),
        box=st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2),
    )
    def test_a_crop_composed_is_the_composed_crop(
        self, dtype: str, inputs: tuple[str, ...], box: tuple[int, int, int, int]
    ) -> None:
        image = noise(dtype)
        params = ranges(image, resolve(inputs, {}, rgb_slide()))
        crop = np.s_[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        whole = compose(image, params)
        assert whole.dtype == np.uint8
        assert whole.shape == image.shape
        np.testing.assert_array_equal(compose(image[crop], params), whole[crop])
        np.testing.assert_array_equal(compose(np.ascontiguousarray(image[crop]), params), whole[crop])

    @pytest.mark.parametrize("dtype", ["u1", "f4"])
    def test_so_it_is_of_an_image_of_many_strips(self, dtype: str) -> None:
        image = noise(dtype, (700, 601, 3))
        params = ranges(image, resolve(("eosin", "red+blue"), {}, rgb_slide()))
        whole = compose(image, params)
        for rows in (np.s_[:351], np.s_[351:], np.s_[100:651]):
            np.testing.assert_array_equal(compose(image[rows, 13:], params), whole[rows, 13:])

    @pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "u4", "f4", "f8"])
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_channels_by_name_are_what_no_inputs_give(self, dtype: str, n: int) -> None:
        image = noise(dtype)[..., :n]
        expected = intensity_range(image, is_rgb=False)
        found = composed(image, *NAMES[:n], slide=a_slide(tuple(range(n))))
        np.testing.assert_array_equal(found, to_rgb8(image, expected))
        np.testing.assert_array_equal(to_rgb8(image, expected), plainly_scaled(image, expected))

    def test_red_green_and_blue_by_name_keep_their_colours(self) -> None:
        image = immunohistochemistry()
        expected = to_rgb8(image, intensity_range(image, is_rgb=True))
        np.testing.assert_array_equal(composed(image, "red", "green", "blue"), expected)
        np.testing.assert_array_equal(composed(image, "blue", "green", "red"), expected[..., ::-1])

    def test_one_entry_is_repeated_and_two_leave_blue_dark(self) -> None:
        image = noise("u2")
        one, two = composed(image, "cd8"), composed(image, "cd8", "dapi")
        assert (one == one[..., :1]).all()
        np.testing.assert_array_equal(two[..., 0], one[..., 0])
        assert two[..., 1].any()
        assert not two[..., 2].any()

    def test_of_several_the_brightest_counts_each_by_its_own_range(self) -> None:
        image = noise("u2")
        image[..., 1] //= 100  # as bright as the others on its own scale
        each = [composed(image, name)[..., 0] for name in ("0", "1", "2")]
        found = composed(image, "DAPI + CD3", "cd8")
        np.testing.assert_array_equal(found[..., 0], np.maximum(each[0], each[1]))
        np.testing.assert_array_equal(found[..., 1], each[2])

    def test_one_chosen_channel_comes_without_an_axis(self) -> None:
        image = noise("u2")[..., 0]
        plan = resolve(("CD3",), {}, a_slide((1,)))
        assert compose(image, ranges(image, plan)).shape == (*image.shape, 3)
        np.testing.assert_array_equal(pick(image, plan), image)

    def test_what_is_no_number_is_dark(self) -> None:
        image = noise("f4")
        for inputs in [("green",), ("eosin",)]:
            found = composed(image, *inputs, slide=rgb_slide())
            assert not found[np.isnan(image[..., 1])].any()

    @pytest.mark.parametrize("value", [0, 7, 255])
    def test_a_blank_slide_is_dark(self, value: int) -> None:
        assert not composed(np.full((8, 8, 3), value, np.uint8), "hematoxylin", "dab+eosin").any()

    def test_raw_channels_for_scaling_by_tile(self) -> None:
        image, slide = noise("f4"), a_slide()
        np.testing.assert_array_equal(pick(image, resolve(("CD8", "DAPI"), {}, slide)), image[..., [2, 0]])
        np.testing.assert_array_equal(pick(image, resolve(("CD8",), {}, slide)), image[..., 2])
        np.testing.assert_array_equal(pick(noise("u1", (9, 9, 5)), {}), noise("u1", (9, 9, 5))[..., :3])

    def test_another_number_of_channels_is_refused(self) -> None:
        params = ranges(noise("u2"), resolve(("CD3",), {}, a_slide()))
        with pytest.raises(SegmenterError, match="found for 3 channels, but the block has 2"):
            compose(noise("u2")[..., :2], params)


def plainly_scaled(image: np.ndarray, params: dict[str, list[float]]) -> np.ndarray:
    """`to_rgb8` in one piece, without tables and strips."""
    with np.errstate(invalid="ignore"):
        part = (image.astype(np.float64) - params["low"]) / (np.array(params["high"]) - params["low"])
    scaled = np.rint(np.nan_to_num(np.clip(part, 0, 1)) * 255).astype(np.uint8)
    n = scaled.shape[-1]
    return np.repeat(scaled, 3, 2) if n == 1 else np.pad(scaled, [(0, 0), (0, 0), (0, 3 - n)])


class TestRanges:
    @pytest.mark.parametrize(
        ("inputs", "artefact"), [(("hematoxylin", "eosin", "dab"), 0), (("red+green",), 255), (("dab",), 255)]
    )
    def test_a_speck_elsewhere_changes_next_to_nothing(self, inputs: tuple[str, ...], artefact: int) -> None:
        image = immunohistochemistry()
        spoilt = image.copy()
        spoilt[:8, :16] = artefact  # 0.05 % of the pixels
        plan = resolve(inputs, {}, rgb_slide())
        clean, other = ranges(image, plan), ranges(spoilt, plan)
        for before, after in zip(chain(*clean["inputs"]), chain(*other["inputs"]), strict=True):
            assert after["low"] == pytest.approx(before["low"], rel=0.01)
            assert after["high"] == pytest.approx(before["high"], rel=0.1)  # now between the 99.85th and 99.95th

    def test_a_hot_speck_in_fluorescence_too(self) -> None:
        image = np.random.default_rng(0).uniform(100, 1000, (400, 400, 3)).astype(np.uint16)
        spoilt = image.copy()
        spoilt[:8, :10] = 65535
        plan = resolve(("DAPI", "CD3+CD8"), {}, a_slide())
        clean, other = ranges(image, plan), ranges(spoilt, plan)
        for before, after in zip(chain(*clean["inputs"]), chain(*other["inputs"]), strict=True):
            assert after["low"] == pytest.approx(before["low"], rel=0.01)
            assert after["high"] == pytest.approx(before["high"], rel=0.01)

    def test_json_holds_all(self) -> None:
        image = immunohistochemistry()
        params = ranges(image, resolve(("hematoxylin+dab", "red"), {"x": FAST_RED}, rgb_slide()))
        kept = jsonable_params(params)
        assert json.loads(json.dumps(kept)) == params
        np.testing.assert_array_equal(compose(image, kept), compose(image, params))


class TestNames:
    def test_numbers_are_the_slides(self) -> None:
        slide = a_slide((4, 1))
        terms = resolve(("4", "cd3 ", "AF"), {}, slide)["inputs"]
        assert [entry[0]["channel"] for entry in terms] == [0, 1, 0]

    def test_a_name_with_a_plus_is_taken_whole(self) -> None:
        slide = a_slide((0, 3))
        assert [len(entry) for entry in resolve(("cd4+", "dapi+3"), {}, slide)["inputs"]] == [1, 2]

    def test_a_channel_named_like_a_stain_is_the_channel(self) -> None:
        slide = a_slide((0, 1), ("Hematoxylin", "DAB"))
        assert resolve(("dab",), {}, slide)["inputs"][0][0]["channel"] == 1

    @pytest.mark.parametrize(
        ("slide", "inputs", "message"),
        [
            (a_slide(), ("CD20",), r"s1 has no 'cd20'; it has channels 0 DAPI, 1 CD3, 2 CD8$"),
            (a_slide(), ("DAPI", "CD3+7"), r"s1 has no '7'"),
            (a_slide(), ("DAPI+",), r"s1 has no ''"),
            (a_slide(), ("AF",), r"channel 'af' of s1 isn't chosen: add it to slide\.channels"),
            (a_slide(), ("4",), r"channel '4' of s1 isn't chosen"),
            (a_slide(), ("dab",), r"dab is a stain, .* name its channels instead"),
            (rgb_slide((0, 1)), ("dab",), r"dab is a stain, .* set slide\.channels: auto"),
            (rgb_slide(), ("orange g",), r"it has channels 0 red, .* and stains hematoxylin, eosin, dab$"),
            (a_slide(tuple(range(40)), tuple(map(str, range(100, 140)))), ("x",), r"channels 0 100, .*11 111, \.\.\.$"),
        ],
    )
    def test_unknown_ones_are_refused_before_any_pixel(
        self, slide: Slide, inputs: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(SegmenterError, match=message) as raised:
            check_inputs(MicroSam(inputs=inputs), slide)
        assert str(raised.value).startswith("setting segmenter.inputs: ")
        assert "\n" not in str(raised.value)

    def test_a_stain_must_not_be_called_like_a_channel(self) -> None:
        with pytest.raises(SegmenterError, match=r"segmenter\.stains: s1 has a channel red"):
            resolve(("green",), {"Red": FAST_RED}, rgb_slide())

    @pytest.mark.parametrize("inputs", [("red+green",), ("red", "dab")])
    def test_scaling_by_tile_has_no_ranges_for_these(self, inputs: tuple[str, ...]) -> None:
        with pytest.raises(SegmenterError, match=rf"{inputs[-1].replace('+', '.')} .* set segmenter\.scaling: slide"):
            check_inputs(MicroSam(inputs=inputs, scaling="tile"), rgb_slide())

    def test_nothing_named_is_nothing_to_check(self) -> None:
        assert check_inputs(MicroSam(), a_slide()) == {}
        assert check_inputs(MicroSam(inputs=("1",), scaling="tile"), a_slide())["inputs"][0][0]["channel"] == 1
