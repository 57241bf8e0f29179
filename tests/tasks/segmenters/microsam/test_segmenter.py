"""micro-sam's segmenter against micro-sam itself, which runs in a process of its own (microsam_reference.py)."""

from __future__ import annotations

import importlib.util
import json
import pickle
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
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.segmenters.microsam.inputs import intensity_range
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.settings.methods import MicroSam
from tests.support.microsam_fixtures import AMG_OPTIONS, APG_OPTIONS, MICROSAM_MARKS, alone
from tests.support.sam_inputs import rgb_block

# Of micro-sam's AMG, what its class takes and not its generate().
INIT_OPTIONS = {"points_per_side"}
# As micro-sam's authors take them: two tiles of 256 × 448 px, which its own cutting shows at different scales.
TILE, HALO = (384, 384), (64, 64)


def dim_block() -> np.ndarray:
    """(256, 448) uint16, one channel, two tiles of different brightness, all in the lower half of the slide's range."""
    gray = immunohistochemistry()[:256, :448].mean(axis=-1)
    return (1000 + 40 * (255 - gray) * np.linspace(0.4, 1, 448)).astype(np.uint16)


def wide_block() -> np.ndarray:
    """(256, 448, 3) uint8."""
    return immunohistochemistry()[:256, :448]


@dataclass(frozen=True)
class Case:
    mode: str
    scaling: str
    make_block: Callable[[], np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    tile_shape: tuple[int, int] | None = None
    range: dict[str, list[float]] | None = None
    model: str = "vit_b"

    def settings(self, checkpoints: dict[str, Path]) -> MicroSam:
        return MicroSam(
            model=self.model,
            checkpoint=str(checkpoints[self.model]),
            mode=self.mode,
            device="cpu",
            scaling=self.scaling,
            options=self.options,
            tile_shape=self.tile_shape,
            tile_halo=HALO if self.tile_shape else "auto",
            tiling="micro-sam",
        )


# `scaling: slide` differs in what the encoder sees (TestWhatTheEncoderSees); test_pipeline.py has it, untiled.
CASES = {
    "ais": Case("ais", "tile", rgb_block),
    "ais tiled": Case("ais", "tile", dim_block, {"min_size": 10}, TILE),
    "ais tiled slide": Case("ais", "slide", dim_block, {"min_size": 10}, TILE, {"low": [900.0], "high": [16000.0]}),
    "apg": Case("apg", "tile", rgb_block, APG_OPTIONS),
    "apg tiled": Case("apg", "tile", wide_block, APG_OPTIONS, TILE),
    "amg": Case("amg", "tile", rgb_block, AMG_OPTIONS),
    "amg tiled": Case("amg", "tile", dim_block, AMG_OPTIONS, TILE),
    "vit_t ais": Case("ais", "tile", rgb_block, model="vit_t"),
    "vit_t ais tiled": Case("ais", "tile", dim_block, {"min_size": 10}, TILE, model="vit_t"),
    "vit_t apg tiled": Case(
        "apg", "tile", wide_block, {**APG_OPTIONS, "foreground_threshold": 0.5}, TILE, model="vit_t"
    ),
    "vit_t amg tiled": Case("amg", "tile", dim_block, AMG_OPTIONS, TILE, model="vit_t"),
}


@pytest.fixture(scope="module")
def checkpoints(microsam_checkpoint: Path, vit_t_checkpoint: Path) -> dict[str, Path]:
    return {"vit_b": microsam_checkpoint, "vit_t": vit_t_checkpoint}


@pytest.fixture(scope="module")
def reference(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """micro-sam's own labels of all cases, from one process."""
    folder = tmp_path_factory.mktemp("reference")
    listed = []
    for name, case in CASES.items():
        # With more threads micro-sam's own labels differ from run to run here (see MicroSamSegmenter).
        one_thread = {"n_threads": 1} if case.mode == "ais" and case.tile_shape else {}
        np.save(folder / f"{name}.npy", case.make_block())
        listed.append(
            {
                "model": case.model,
                "checkpoint": str(checkpoints[case.model]),
                "mode": case.mode,
                "image": str(folder / f"{name}.npy"),
                "labels": str(folder / f"{name} labels.npy"),
                "tile_shape": case.tile_shape,
                "halo": HALO if case.tile_shape else None,
                "init_options": {key: case.options[key] for key in case.options.keys() & INIT_OPTIONS},
                "generate_options": {key: case.options[key] for key in case.options.keys() - INIT_OPTIONS}
                | one_thread
                | ({"with_background": False} if case.mode == "amg" else {}),
                "range": case.range,
            }
        )
    (folder / "cases.json").write_text(json.dumps(listed))
    alone("reference", folder / "cases.json")
    return {name: np.load(folder / f"{name} labels.npy") for name in CASES}


class TestAgainstMicroSam:
    pytestmark = MICROSAM_MARKS

    @pytest.mark.parametrize("name", CASES)
    def test_labels_are_micro_sams(
        self,
        name: str,
        reference: dict[str, np.ndarray],
        checkpoints: dict[str, Path],
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads take half as much CPU again, and CI has no more
        case = CASES[name]
        segmenter = MicroSamSegmenter(case.settings(checkpoints), is_rgb=False)
        if name == "apg":
            blank = segmenter.segment(np.full((256, 256, 3), 240, np.uint8), case.range or {})
            assert blank.shape == (256, 256)  # and leaves nothing behind that the next block could see
        labels = segmenter.segment(case.make_block(), case.range or {})
        assert len(np.unique(labels)) > 10
        assert labels.shape == case.make_block().shape[:2]
        np.testing.assert_array_equal(labels, reference[name])
        assert capfd.readouterr().out == ""

    def test_the_rest_of_a_block_waits_while_others_begin(
        self, reference: dict[str, np.ndarray], checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        name, case = "ais tiled", CASES["ais tiled"]
        segmenter = MicroSamSegmenter(case.settings(checkpoints), is_rgb=False)
        assert MicroSamSegmenter.begin is not Segmenter.begin
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
    pytestmark = MICROSAM_MARKS

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


class RunsCode:
    """What a stranger puts into a checkpoint: a call that unpickling makes."""

    def __init__(self, left: Path) -> None:
        self.left = left

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.left), "w")


class TestCheckpoints:
    pytestmark = MICROSAM_MARKS

    def test_code_in_a_checkpoint_runs_only_if_it_is_trusted(self, tmp_path: Path) -> None:
        import torch

        path, left = tmp_path / "weights.pt", tmp_path / "left"
        torch.save({"model_state": {}, "more": RunsCode(left)}, path)
        settings = MicroSam(model="vit_b", checkpoint=str(path))
        with pytest.raises(SegmenterError, match=r"weights.pt can't be loaded .*open.*segmenter.trust=true"):
            MicroSamSegmenter(settings, is_rgb=True)
        assert not left.exists()
        with pytest.raises(SegmenterError, match=r"weights.pt can't be loaded"):
            MicroSamSegmenter(settings.model_copy(update={"trust": True}), is_rgb=True)
        assert left.exists()


def test_importing_is_light() -> None:
    module = "slidesam.tasks.segmenters.microsam.segmenter"
    code = f"import sys, {module}; print(sorted({{'torch', 'micro_sam', 'zarr'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.strip() == "[]"
