"""Tiles of image and outlines against the pixels and labels of the result."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import slidesam
from slidesam.tasks.grid import Region
from slidesam.tasks.store.multiscales import place_averages
from slidesam.tasks.store.pyramids import ShownLevel
from slidesam.tasks.view.image_tiles import TILE, ShownChannel, ShownImage, draw_image_tile, tile_shape
from slidesam.tasks.view.object_rows import ObjectSummary
from slidesam.tasks.view.outline_tiles import colour_outlines, draw_outline_tile
from slidesam.tasks.view.viewed import ViewedResult


def all_tiles(shape, scale, draw):
    """All tiles of a scale, side by side."""
    n_rows, n_columns = (-(-int(np.ceil(size / scale)) // TILE) for size in shape)
    rows = [[draw(row, column) for column in range(n_columns)] for row in range(n_rows)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def outline_oracle(labels: np.ndarray) -> np.ndarray:
    """Pixels of objects beside another label, and those of the same object beside these where that label is background."""

    def around(values: np.ndarray) -> list[np.ndarray]:
        padded = np.pad(values, 1, mode="edge")
        return [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]

    first = (labels > 0) & np.any([neighbour != labels for neighbour in around(labels)], axis=0)
    open_side = (labels > 0) & np.any([neighbour == 0 for neighbour in around(labels)], axis=0)
    pairs = zip(around(open_side), around(labels), strict=True)
    return first | np.any([is_open & (label == labels) for is_open, label in pairs], axis=0)


class TestImage:
    def test_full_resolution_is_the_slide_s_pixels(self, bright: ViewedResult, bright_result: slidesam.Result) -> None:
        drawn = all_tiles(
            (600, 600), 1, lambda row, column: draw_image_tile(bright.image, 1, row, column, bright.channels)
        )
        np.testing.assert_array_equal(drawn, bright_result.image[:, :])

    def test_coarser_tiles_are_levels_of_the_store(self, bright: ViewedResult, bright_result: slidesam.Result) -> None:
        np.testing.assert_array_equal(
            draw_image_tile(bright.image, 2, 0, 0, bright.channels), bright_result.image.levels[1][:, :]
        )

    def test_where_there_is_no_level_pixels_are_averaged_or_enlarged(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 1)).astype(np.uint8)

        def level(step: int) -> ShownLevel:
            small = pixels.reshape(96 // step, step, 64 // step, step, 1).mean(axis=(1, 3)).astype(np.uint8)
            return ShownLevel(
                small.shape[:2], small.dtype, place_averages((step, step)), lambda region, _: small[region.slices]
            )

        channels = [ShownChannel(0, (255, 255, 255), (0.0, 255.0))]
        averaged = draw_image_tile(ShownImage((96, 64), [level(1)], False), 4, 0, 0, channels)
        expected = pixels.reshape(24, 4, 16, 4).mean(axis=(1, 3))
        assert averaged.shape == (24, 16, 3)
        assert np.abs(averaged[..., 0] - expected).max() <= 1
        # Only an overview is there: its pixels appear where they belong.
        enlarged = draw_image_tile(ShownImage((96, 64), [level(8)], False), 1, 0, 0, channels)
        assert enlarged.shape == (96, 64, 3)
        centres = enlarged[3:93:8, 3:61:8, 0].astype(int) + enlarged[4:94:8, 4:62:8, 0]
        assert np.abs(centres / 2 - level(8).read(Region(0, 0, 12, 8), (0,))[..., 0]).max() < 20

    def test_a_level_that_would_be_too_much_to_read_isnt_read(self) -> None:
        def fail(region, channels):
            raise AssertionError("the whole level would be read")

        huge = ShownLevel((100_000, 100_000), np.dtype(np.uint16), place_averages((1, 1)), fail)
        read = []

        def note(region, channels):
            read.append(region)
            return np.zeros((*region.shape, len(channels)), np.uint16)

        overview = ShownLevel((3125, 3125), np.dtype(np.uint16), place_averages((32, 32)), note)
        image = ShownImage((100_000, 100_000), [huge, overview], False)
        channels = [ShownChannel(number, (255, 0, 0), (0.0, 1.0)) for number in range(4)]
        assert draw_image_tile(image, 16, 1, 2, channels).shape == (512, 512, 3)
        assert read == [(256, 512, 512, 768)]

    def test_channels_have_their_colours_and_windows(self, dark: ViewedResult, dark_result: slidesam.Result) -> None:
        channels = [ShownChannel(0, (0, 0, 255), (100.0, 1000.0)), ShownChannel(1, (255, 128, 0), (0.0, 4000.0))]
        drawn = all_tiles((560, 600), 1, lambda row, column: draw_image_tile(dark.image, 1, row, column, channels))
        pixels = dark_result.image[:, :].astype(float)
        blue = np.clip((pixels[..., 0] - 100) / 900, 0, 1) * 255
        ramp = np.clip(pixels[..., 1] / 4000, 0, 1) * 255
        assert np.abs(drawn[..., 2] - blue).max() <= 1
        assert np.abs(drawn[..., 0] - ramp).max() <= 1
        assert np.abs(drawn[..., 1] - ramp * 128 / 255).max() <= 1

    def test_at_first_channels_are_shown_as_the_store_colours_them_but_for_dark_blue(self, dark: ViewedResult) -> None:
        assert dark.shown == (0, 1)
        assert [channel.colour for channel in dark.channels] == [(70, 110, 255), (0, 255, 0)]
        low, high = dark.channels[0].window
        assert 100 <= low < high <= 9 * 255 + 100

    def test_there_is_no_tile_outside(self) -> None:
        for row, column in ((2, 0), (0, 2), (-1, 0)):
            with pytest.raises(IndexError, match="no tile"):
                tile_shape((600, 600), 1, row, column)


class TestOutlines:
    @pytest.mark.parametrize("level", [0, 1])
    def test_outlines_are_those_of_the_level_that_is_shown(
        self, bright: ViewedResult, bright_result: slidesam.Result, level: int
    ) -> None:
        levels, scale = bright.labels["cells"].levels, Fraction(2**level)
        drawn = all_tiles((600, 600), 2**level, lambda row, column: draw_outline_tile(levels, scale, row, column)[0])
        labels = bright_result.labels.levels[level][:, :]
        np.testing.assert_array_equal(drawn, outline_oracle(labels))
        assert drawn.any()

    def test_finer_than_level_0_they_are_thinner_than_its_pixels(
        self, bright: ViewedResult, bright_result: slidesam.Result
    ) -> None:
        levels = bright.labels["cells"].levels
        labels = bright_result.labels[:, :].repeat(4, 0).repeat(4, 1)
        drawn = all_tiles(
            (600, 600), 0.25, lambda row, column: draw_outline_tile(levels, Fraction(1, 4), row, column)[0]
        )
        np.testing.assert_array_equal(drawn, outline_oracle(labels))

    def test_beyond_the_last_level_its_pixels_are_taken(
        self, bright: ViewedResult, bright_result: slidesam.Result
    ) -> None:
        levels = bright.labels["cells"].levels
        _, ids = draw_outline_tile(levels, Fraction(16), 0, 0)
        np.testing.assert_array_equal(ids, bright_result.labels[::16, ::16])

    def test_classes_have_colours_and_can_be_hidden(self) -> None:
        ids = np.array([[0, 1, 2], [4, 2, 1]])
        numbers = np.array([1, 0, 1], np.uint16)
        summary = ObjectSummary(np.array([1, 2, 4]), numbers, ("a", "b"), [], 4, 3.0)
        colours = [(10, 20, 30), (40, 50, 60)]
        drawn = np.asarray(colour_outlines(ids > 0, ids, summary, colours, frozenset()).convert("RGB"))
        expected = {0: (0, 0, 0), 1: colours[1], 2: colours[0], 4: colours[1]}
        np.testing.assert_array_equal(drawn, [[expected[number] for number in row] for row in ids.tolist()])
        hidden = np.asarray(colour_outlines(ids > 0, ids, summary, colours, frozenset({"b"})))
        np.testing.assert_array_equal(hidden > 0, ids == 2)

    def test_without_classes_there_is_one_colour(self) -> None:
        picture = colour_outlines(np.array([[True, False]]), np.array([[7, 7]]), None, [(1, 2, 3)], frozenset())
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), [[(1, 2, 3), (0, 0, 0)]])
