"""What SAM's encoder is shown, and in which batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.base import Arithmetic
from slidesam.tasks.segmenters.microsam.inputs import intensity_range
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.segmenters.microsam.sizes import with_tiles
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.slides.facts import Slide
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.sam_inputs import rgb_block
from tests.support.same import score

pytestmark = [*MICROSAM_MARKS]


class TestWhatTheEncoderSees:
    """Two images of one slide share their left 160 columns; in two tiles, of columns 0 to 143 and 112 to 255."""

    @pytest.mark.parametrize(
        ("scaling", "inputs", "are_equal"),
        [("slide", (), True), ("slide", ("hematoxylin+dab", "green"), True), ("tile", ("green", "red"), False)],
    )
    def test_of_one_place_is_the_same_whatever_else_its_block_holds(
        self,
        scaling: str,
        inputs: tuple[str, ...],
        are_equal: bool,
        microsam_checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        settings = MicroSam(
            checkpoint=str(microsam_checkpoint),
            device="cpu",
            tile_shape=128,
            tile_halo=16,
            scaling=scaling,
            inputs=inputs,
        )
        segmenter = MicroSamSegmenter(settings, is_rgb=True)
        monkeypatch.setattr(segmenter, "_segmenter", FindsNothing())
        seen: list[np.ndarray] = []
        encoder = segmenter._predictor.model.image_encoder
        encoder.register_forward_pre_hook(lambda _module, given: seen.extend(given[0].numpy().copy()))
        quiet = rgb_block()[:128] // 2 + 60
        loud = quiet.copy()
        loud[:, 160:] = np.random.default_rng(0).integers(0, 256, (128, 96, 3))
        slide = Slide.model_construct(name="s", channels=(0, 1, 2), channel_names=("red", "green", "blue"), is_rgb=True)
        params = segmenter.prepare(quiet, slide)
        for image in (quiet, loud):
            segmenter.segment(image, params)
        quiet_left, quiet_right, loud_left, loud_right = seen
        assert quiet_left.shape == (3, 1024, 1024)
        np.testing.assert_array_equal(quiet_left, loud_left)
        # Of the second tile 48 columns are shared, 341 on SAM's scale, of which resizing mixes the last with others.
        assert np.array_equal(quiet_right[..., :300], loud_right[..., :300]) == are_equal
        assert not np.array_equal(quiet_right[..., 400:], loud_right[..., 400:])
        assert len(np.unique(quiet_right[..., :300])) > 50


class TestScale:
    """Each tile of a block is one field of the model, enlarged to SAM's 1024 px, at the block's rim as in its middle."""

    @pytest.mark.parametrize("model", ["vit_b_histopathology", "vit_b_lm", "vit_b"])
    def test_every_tile_is_shown_at_the_scale_of_training(
        self, model: str, microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mode, side = ("amg", 1024) if model == "vit_b" else ("ais", 512)
        shape = (1152, 1152)
        settings = with_tiles(MicroSam(checkpoint=str(microsam_checkpoint), mode=mode, device="cpu"), model, shape)
        seen = encoder_inputs(settings, [color_noise(shape)], monkeypatch)
        step, last = side * 3 // 4, shape[0] - side
        corners = [*range(0, last, step), last]
        assert len(seen) == len(corners) ** 2 == {512: 9, 1024: 4}[side]
        image = color_noise(shape)
        for tile, (top, left) in zip(seen, ((top, left) for top in corners for left in corners), strict=True):
            field = Image.fromarray(image[top : top + side, left : left + side])
            np.testing.assert_array_equal(tile, preprocess(np.asarray(field.resize((1024, 1024), Image.BILINEAR))))

    def test_a_small_block_is_not_enlarged_further(
        self, microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shape = (300, 200)
        settings = with_tiles(MicroSam(checkpoint=str(microsam_checkpoint), device="cpu"), "vit_b_lm", shape)
        (seen,) = encoder_inputs(settings, [color_noise(shape)], monkeypatch)
        enlarged = Image.fromarray(color_noise(shape)).resize((400, 600), Image.BILINEAR)
        np.testing.assert_array_equal(seen[:, :600, :400], preprocess(np.asarray(enlarged)))
        assert not seen[:, 600:].any()
        assert not seen[:, :, 400:].any()


def color_noise(shape: tuple[int, int]) -> np.ndarray:
    """(y, x, 3) uint8 whose channels reach from 0 to 255."""
    return np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)


def preprocess(image: np.ndarray) -> np.ndarray:
    """(3, y, x) float32 as SAM's network takes it: by the mean and deviation of its photographs."""
    mean, deviation = np.array([123.675, 116.28, 103.53], "f4"), np.array([58.395, 57.12, 57.375], "f4")
    return ((image.astype("f4") - mean) / deviation).transpose(2, 0, 1)


def encoder_inputs(settings: MicroSam, blocks: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the encoder is given for blocks of 8 bit; it says nothing."""
    segmenter = MicroSamSegmenter(settings, is_rgb=True)
    monkeypatch.setattr(segmenter, "_segmenter", FindsNothing())
    seen: list[np.ndarray] = []

    def forward(batch: Any) -> Any:
        seen.extend(batch.numpy().copy())
        return batch.new_zeros(len(batch), 256, 64, 64)

    monkeypatch.setattr(segmenter._predictor.model.image_encoder, "forward", forward)
    for block in blocks:
        segmenter.segment(block, {"low": [0.0] * 3, "high": [255.0] * 3})
    return seen


class FindsNothing:
    """In a generator's place, which only looks at what the encoder says."""

    def initialize(self, **given: Any) -> None:
        pass

    def generate(self, **given: Any) -> None:
        pass

    def clear_state(self) -> None:
        pass


class TestBatches:
    """Three tiles of one block."""

    def segmenter(self, checkpoint: Path, **more: Any) -> MicroSamSegmenter:
        settings = MicroSam(checkpoint=str(checkpoint), mode="ais", device="cpu", tile_shape=96, tile_halo=16, **more)
        return MicroSamSegmenter(settings, is_rgb=True)

    def test_labels_are_the_same_in_any_batch(self, microsam_checkpoint: Path) -> None:
        image = rgb_block()[:96]
        batches: list[list[int]] = []
        found = []
        for batch_size in (1, 2, 3):
            segmenter = self.segmenter(microsam_checkpoint, batch_size=batch_size)
            sizes: list[int] = []
            segmenter._predictor.model.image_encoder.register_forward_pre_hook(
                lambda _module, given, sizes=sizes: sizes.append(len(given[0]))
            )
            found.append(segmenter.segment(image, intensity_range(image, is_rgb=True)))
            batches.append(sizes)
            assert segmenter.arithmetic == Arithmetic("float32", batch_size)
        assert batches == [[1, 1, 1], [2, 1], [3]]
        assert found[0].max() >= 5
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])

    def test_where_memory_is_short_fewer_go_at_once(
        self, microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        image = rgb_block()[:96]
        segmenter = self.segmenter(microsam_checkpoint, batch_size=3)
        params = intensity_range(image, is_rgb=True)
        whole = segmenter.segment(image, params)
        encoder = segmenter._predictor.model.image_encoder
        forward, tried, room = encoder.forward, [], 1

        def short_of_memory(batch: Any) -> Any:
            tried.append(len(batch))
            if len(batch) > room:
                raise torch.OutOfMemoryError
            return forward(batch)

        monkeypatch.setattr(encoder, "forward", short_of_memory)
        np.testing.assert_array_equal(segmenter.segment(image, params), whole)
        assert tried == [3, 1, 1, 1]
        assert segmenter.arithmetic.batch_size == 1
        room = 0
        with pytest.raises(SegmenterError, match="too little memory for a single tile"):
            segmenter.segment(image, params)

    def test_bfloat16_finds_much_the_same(self, microsam_checkpoint: Path) -> None:
        import torch

        image = rgb_block()[:96]
        params = intensity_range(image, is_rgb=True)
        exact = self.segmenter(microsam_checkpoint)
        rough = self.segmenter(microsam_checkpoint, precision="bfloat16")
        kinds = []
        rough._predictor.model.image_encoder.neck[0].register_forward_hook(
            lambda _module, _given, out: kinds.append(out.dtype)
        )
        found = [segmenter.segment(image, params) for segmenter in (exact, rough)]
        assert set(kinds) == {torch.bfloat16}
        assert rough.arithmetic.precision == "bfloat16"
        assert score(found[1], found[0]) > 0.5
        # auto is bfloat16 where a GPU has it.
        assert self.segmenter(microsam_checkpoint, precision="auto").arithmetic.precision == "float32"
