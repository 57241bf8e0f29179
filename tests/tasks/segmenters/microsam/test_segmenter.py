"""micro-sam's segmenter against micro-sam itself, which runs in a process of its own (microsam_reference.py)."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import immunohistochemistry

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import InTwoParts
from slidesam.tasks.segmenters.microsam.segmenter import (
    MicroSamSegmenter,
    intensity_range,
    model_identity,
    model_name,
    to_rgb8,
)
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.slides.facts import Slide
from tests.support.microsam_fixtures import AMG_OPTIONS, APG_OPTIONS, MICROSAM_MARKS, alone
from tests.support.same import score

microsam = [*MICROSAM_MARKS]
# Of micro-sam's AMG, what its class takes and not its generate().
INIT_OPTIONS = {"points_per_side"}


def rgb_block() -> np.ndarray:
    return immunohistochemistry()[:256, :256]


def dim_block() -> np.ndarray:
    """(256, 384) uint16, one channel, two tiles of different brightness, all in the lower half of the slide's range."""
    gray = immunohistochemistry()[:256, :384].mean(axis=-1)
    return (1000 + 40 * (255 - gray) * np.linspace(0.4, 1, 384)).astype(np.uint16)


@dataclass(frozen=True)
class Case:
    mode: str
    scaling: str
    make_block: Callable[[], np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    tile_shape: tuple[int, int] | None = None
    range: dict[str, list[float]] | None = None

    def settings(self, checkpoint: Path) -> MicroSam:
        return MicroSam(
            checkpoint=str(checkpoint),
            mode=self.mode,
            device="cpu",
            scaling=self.scaling,
            options=self.options,
            tile_shape=self.tile_shape,
        )


# `scaling: slide` differs in what the encoder sees (TestWhatTheEncoderSees); test_microsam_pipeline.py has it, untiled.
CASES = {
    "ais": Case("ais", "tile", rgb_block),
    "ais tiled": Case("ais", "tile", dim_block, {"min_size": 10}, (256, 256)),
    "ais tiled slide": Case(
        "ais", "slide", dim_block, {"min_size": 10}, (256, 256), {"low": [900.0], "high": [16000.0]}
    ),
    "apg": Case("apg", "tile", rgb_block, APG_OPTIONS),
    "amg": Case("amg", "tile", rgb_block, AMG_OPTIONS),
}


@pytest.fixture(scope="module")
def reference(microsam_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """micro-sam's own labels of all cases, from one process."""
    folder = tmp_path_factory.mktemp("reference")
    listed = []
    for name, case in CASES.items():
        # With more threads micro-sam's own labels differ from run to run here (see MicroSamSegmenter).
        one_thread = {"n_threads": 1} if case.mode == "ais" and case.tile_shape else {}
        np.save(folder / f"{name}.npy", case.make_block())
        listed.append(
            {
                "checkpoint": str(microsam_checkpoint),
                "mode": case.mode,
                "image": str(folder / f"{name}.npy"),
                "labels": str(folder / f"{name} labels.npy"),
                "tile_shape": case.tile_shape,
                "halo": (64, 64) if case.tile_shape else None,
                "init_options": {key: case.options[key] for key in case.options.keys() & INIT_OPTIONS},
                "generate_options": {key: case.options[key] for key in case.options.keys() - INIT_OPTIONS} | one_thread,
                "range": case.range,
            }
        )
    (folder / "cases.json").write_text(json.dumps(listed))
    alone("reference", folder / "cases.json")
    return {name: np.load(folder / f"{name} labels.npy") for name in CASES}


class TestAgainstMicroSam:
    pytestmark = microsam

    @pytest.mark.parametrize("name", CASES)
    def test_labels_are_micro_sams(
        self,
        name: str,
        reference: dict[str, np.ndarray],
        microsam_checkpoint: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads take half as much CPU again, and CI has no more
        case = CASES[name]
        segmenter = MicroSamSegmenter(case.settings(microsam_checkpoint), is_rgb=False)
        if name == "apg":
            blank = segmenter.segment(np.full((256, 256, 3), 240, np.uint8), case.range or {})
            assert blank.shape == (256, 256)  # and leaves nothing behind that the next block could see
        labels = segmenter.segment(case.make_block(), case.range or {})
        assert len(np.unique(labels)) > 10
        assert labels.shape == case.make_block().shape[:2]
        np.testing.assert_array_equal(labels, reference[name])
        assert capfd.readouterr().out == ""

    def test_the_rest_of_a_block_waits_while_others_begin(
        self, reference: dict[str, np.ndarray], microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        name, case = "ais tiled", CASES["ais tiled"]
        segmenter = MicroSamSegmenter(case.settings(microsam_checkpoint), is_rgb=False)
        assert isinstance(segmenter, InTwoParts)
        block = case.make_block()
        rest = segmenter.begin(block, case.range or {})
        rest_of_other = segmenter.begin(block[::-1], case.range or {})
        np.testing.assert_array_equal(rest(), reference[name])
        assert not np.array_equal(rest_of_other(), reference[name])

    @pytest.mark.parametrize("tile_shape", [None, (128, 128)])
    @pytest.mark.parametrize("mode", ["ais", "apg", "amg"])
    def test_nothing_found_is_all_zero(
        self, mode: str, tile_shape: tuple[int, int] | None, microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = {"points_per_side": 2, "pred_iou_thresh": 2.0} if mode == "amg" else {}
        settings = MicroSam(checkpoint=str(microsam_checkpoint), mode=mode, tile_shape=tile_shape, options=options)
        segmenter = MicroSamSegmenter(settings, is_rgb=False)
        # Encoder and decoder are stood in for.
        monkeypatch.setattr(segmenter._predictor.model.image_encoder, "forward", encode_blank)
        if mode != "amg":
            monkeypatch.setattr(segmenter._segmenter, "_decoder", BlankDecoder())
        params = intensity_range(np.full((9, 9), 7), is_rgb=False)
        labels = segmenter.segment(np.full((128, 192), 7, np.uint16), params)
        assert labels.shape == (128, 192)
        assert np.issubdtype(labels.dtype, np.integer)
        assert not labels.any()


class TestWhatTheEncoderSees:
    """Two images of one slide share their left 160 columns; in two tiles, of columns 0 to 143 and 112 to 255."""

    pytestmark = microsam

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


class TestBatches:
    """Three tiles of one block."""

    pytestmark = microsam

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
            assert segmenter.computing == {"precision": "float32", "batch_size": batch_size}
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
        assert segmenter.computing["batch_size"] == 1
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
        assert rough.computing["precision"] == "bfloat16"
        assert score(found[1], found[0]) > 0.5
        # auto is bfloat16 where a GPU has it.
        assert self.segmenter(microsam_checkpoint, precision="auto").computing["precision"] == "float32"


class FindsNothing:
    """In a generator's place, which only looks at what the encoder says."""

    def initialize(self, **given: Any) -> None:
        pass

    def generate(self, **given: Any) -> None:
        pass

    def clear_state(self) -> None:
        pass


def encode_blank(batch: Any) -> Any:
    return batch.new_zeros(len(batch), 256, 64, 64)


class BlankDecoder:
    """Finds no foreground."""

    def __call__(self, features: Any, input_shape: tuple[int, int], original_shape: tuple[int, int]) -> Any:
        return features.new_zeros(1, 3, *original_shape)

    def _forward_impl(self, features: Any) -> Any:
        return features

    postprocess_masks = __call__


class TestRefusals:
    pytestmark = microsam

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"options": {"point_per_side": 8}, "mode": "amg"}, r"point_per_side is unknown .*points_per_side"),
            ({"options": {"tile_shape": [64, 64]}}, r"tile_shape is slidesam's to set"),
            ({"options": {"crop_n_layers": 1}, "mode": "amg"}, r"set segmenter.scaling: tile"),
            ({"options": {"points_per_side": "many"}, "mode": "amg"}, r"can't make its amg generator"),
            ({"model": "vit_l"}, r"holds weights of vit_b, not vit_l: set segmenter.model: vit_b"),
        ],
    )
    def test_of_settings(self, changes: dict[str, Any], message: str, microsam_checkpoint: Path) -> None:
        with pytest.raises(SegmenterError, match=message):
            MicroSamSegmenter(MicroSam(checkpoint=str(microsam_checkpoint), **changes), is_rgb=True)

    def test_of_what_needs_opencv_where_there_is_none(
        self, microsam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
        settings = MicroSam(checkpoint=str(microsam_checkpoint), mode="amg", options={"min_mask_region_area": 9})
        with pytest.raises(SegmenterError, match="needs OpenCV"):
            MicroSamSegmenter(settings, is_rgb=True)

    def test_of_ais_without_a_decoder(self, microsam_checkpoint: Path, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "encoder.pt"
        torch.save(torch.load(microsam_checkpoint, mmap=True, weights_only=True)["model_state"], path)
        with pytest.raises(SegmenterError, match=r"mode ais needs a decoder, and .*encoder.pt has none: set mode: amg"):
            MicroSamSegmenter(MicroSam(checkpoint=str(path), mode="ais"), is_rgb=True)
        path.unlink()

    def test_of_cuda_where_there_is_none(self, microsam_checkpoint: Path) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        with pytest.raises(SegmenterError, match=r"segmenter.device is cuda, but torch .* only has .*cpu"):
            MicroSamSegmenter(MicroSam(checkpoint=str(microsam_checkpoint), device="cuda"), is_rgb=True)

    @pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps({"a": 1}), pickle.dumps([1])])
    def test_of_a_file_that_is_no_checkpoint(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "notes.pt"
        path.write_bytes(content)
        unpickler = pickle.Unpickler
        with pytest.raises(SegmenterError, match=r"notes.pt can't be loaded as weights of SAM") as raised:
            MicroSamSegmenter(MicroSam(checkpoint=str(path)), is_rgb=True)
        assert "\n" not in str(raised.value)
        assert pickle.Unpickler is unpickler


class TestWeights:
    """Without torch: fast."""

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        (tmp_path / "models").mkdir()

    @pytest.mark.parametrize(
        ("model", "is_rgb", "name"),
        [
            ("auto", True, "vit_b_histopathology"),
            ("auto", False, "vit_b_lm"),
            ("vit_h", True, "vit_h"),
        ],
    )
    def test_model_name(self, model: str, is_rgb: bool, name: str) -> None:
        assert model_name(MicroSam(model=model), is_rgb) == name

    def test_missing_weights_say_where_and_how(self, tmp_path: Path) -> None:
        with pytest.raises(SegmenterError) as raised:
            model_identity(MicroSam(), is_rgb=False)
        message = str(raised.value)
        assert "\n" not in message
        for part in (
            "vit_b_lm",
            str(tmp_path / "models"),
            "slidesam models fetch vit_b_lm",
            "MICROSAM_CACHEDIR",
            "watershed",
        ):
            assert part in message

    def test_a_missing_decoder_is_missing_weights(self, tmp_path: Path) -> None:
        (tmp_path / "models" / "vit_b_lm").write_bytes(b"encoder")
        with pytest.raises(SegmenterError, match="has no vit_b_lm_decoder"):
            model_identity(MicroSam(), is_rgb=False)

    def test_identity_follows_both_files(self, tmp_path: Path) -> None:
        seen = set()
        for encoder, decoder in [(b"a", b"b"), (b"aa", b"b"), (b"a", b"bb"), (b"b", b"a")]:
            (tmp_path / "models" / "vit_b_lm").write_bytes(encoder)
            (tmp_path / "models" / "vit_b_lm_decoder").write_bytes(decoder)
            seen.add(model_identity(MicroSam(), is_rgb=False))
        assert len(seen) == 4
        assert all(identity.startswith("vit_b_lm sha256:") for identity in seen)

    def test_identity_of_a_checkpoint_is_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "a.pt").write_bytes(b"weights")
        shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
        first, second = (model_identity(MicroSam(checkpoint=str(tmp_path / name)), True) for name in ("a.pt", "b.pt"))
        assert first == second
        assert first.startswith("checkpoint sha256:")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (MicroSam(model="vit_t_lm"), "needs mobile_sam"),
            (MicroSam(model="cyto3"), "no model 'cyto3': choose one of vit_b, "),
            (MicroSam(model="cyto3", checkpoint="x.pt"), "names no architecture"),
            (MicroSam(checkpoint="/nowhere/x.pt"), "/nowhere/x.pt is no file"),
            (MicroSam(model="vit_b", mode="ais"), "model vit_b has none"),
        ],
    )
    def test_refusals(self, settings: MicroSam, message: str) -> None:
        with pytest.raises(SegmenterError, match=message):
            model_identity(settings, is_rgb=True)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[micro-sam\]"'):
            model_identity(MicroSam(), is_rgb=False)


class TestIntensities:
    """Without torch: fast."""

    def test_rgb_keeps_its_colours(self) -> None:
        image = rgb_block()
        found = intensity_range(image, is_rgb=True)
        assert found["low"] == [0.0, 0.0, 0.0]
        assert len(set(found["high"])) == 1
        assert 200 < found["high"][0] <= 255

    @pytest.mark.parametrize("value", [0, 7, 65535])
    def test_a_blank_slide_has_a_range(self, value: int) -> None:
        found = intensity_range(np.full((8, 8), value, np.uint16), is_rgb=False)
        assert found["high"][0] > found["low"][0]
        assert not to_rgb8(np.full((4, 4), value, np.uint16), found).any()

    def test_what_is_no_number_is_left_out(self) -> None:
        image = np.array([[np.nan, 1.0], [2.0, np.inf]])
        found = intensity_range(image, is_rgb=False)
        assert 1 <= found["low"][0] < found["high"][0] <= 2
        assert to_rgb8(image, found)[..., 0].tolist() == [[0, 0], [255, 255]]
        assert intensity_range(np.full((2, 2), np.nan), is_rgb=False) == {"low": [0.0], "high": [1.0]}

    def test_full_range_leaves_8_bit_as_it_is(self) -> None:
        image = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert np.array_equal(to_rgb8(image, {"low": [0.0], "high": [255.0]})[..., 1], image)

    @pytest.mark.parametrize(("n_channels", "filled"), [(1, [9, 9, 9]), (2, [9, 9, 0]), (3, [9, 9, 9]), (5, [9, 9, 9])])
    def test_channels_are_filled_up_to_three(self, n_channels: int, filled: list[int]) -> None:
        params = {"low": [0.0] * min(n_channels, 3), "high": [255.0] * min(n_channels, 3)}
        assert to_rgb8(np.full((2, 2, n_channels), 9, np.uint8), params)[0, 0].tolist() == filled

    def test_a_range_for_other_channels_is_refused(self) -> None:
        with pytest.raises(SegmenterError, match="for 1 channels, but the block has 3"):
            to_rgb8(rgb_block(), {"low": [0.0], "high": [1.0]})


def test_importing_is_light() -> None:
    module = "slidesam.tasks.segmenters.microsam.segmenter"
    code = f"import sys, {module}; print(sorted({{'torch', 'micro_sam', 'zarr'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.strip() == "[]"
