"""Cellpose behind slidesam's interface: the real one, with a small network (cellpose_small.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import cellpose, load_segmenter, segmenter_identity
from slidesam.tasks.settings.methods import Cellpose
from tests.support.cellpose_small import make_weights, use_small_network
from tests.support.discs import draw_discs
from tests.support.same import score
from tests.support.serial import segment_serially

real_cellpose = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|cellpose|segment_anything).*"),
]


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights of a small Cellpose network, which this process then makes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    use_small_network(patch.setitem)
    yield make_weights(tmp_path_factory.mktemp("weights") / "small_cpsam")
    patch.undo()


def cellpose_settings(weights: Path, **more: object) -> Cellpose:
    return Cellpose(kind="cellpose", model=str(weights), device="cpu", **more)


class TestCellpose:
    pytestmark = real_cellpose

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"diameter": 24.0, "flow_threshold": 0.8, "cellprob_threshold": -1.0, "min_size": 40, "niter": 150},
            {"use_bfloat16": False, "batch_size": 1, "options": {"augment": True}},
        ],
    )
    def test_labels_are_cellposes(self, small_weights: Path, options: dict) -> None:
        import torch
        from cellpose.models import CellposeModel

        image, truth = draw_discs((280, 360), seed=1)
        segmenter = cellpose.CellposeSegmenter(cellpose_settings(small_weights, **options))
        params = segmenter.prepare(image, None)
        labels = segmenter.segment(image, params)

        called = {key: value for key, value in options.items() if key not in ("use_bfloat16", "options")}
        alone = CellposeModel(
            pretrained_model=str(small_weights),
            device=torch.device("cpu"),
            use_bfloat16=options.get("use_bfloat16", True),
        )
        low, high = np.percentile(image.reshape(-1, 3), (1, 99), axis=0)
        pixels = ((image - low) / (high - low)).astype(np.float32)
        expected, *_ = alone.eval(pixels, normalize=False, channel_axis=-1, **called, **options.get("options", {}))
        np.testing.assert_array_equal(labels, expected)
        assert score(labels, truth) > 0.7
        assert segmenter.device == "cpu"

    def test_a_block_is_seen_by_the_slides_intensities(self, small_weights: Path) -> None:
        image, truth = draw_discs((280, 560), seed=2)
        dim = truth.copy()
        dim[:, :280] = 0
        # The left half is all glass: its own percentiles would make noise of it.
        slide = np.where((truth > 0)[..., None] & (dim == 0)[..., None], 1000, image)
        segmenter = cellpose.CellposeSegmenter(cellpose_settings(small_weights))
        params = segmenter.prepare(slide, None)
        assert not segmenter.segment(slide[:, :256], params).any()
        assert score(segmenter.segment(slide, params), dim) > 0.85

    def test_blocks_find_what_the_whole_image_holds(self, small_weights: Path, tmp_path: Path) -> None:
        image, truth = draw_discs((256, 480), seed=3)
        slide = tmp_path / "discs.ome.tif"
        tifffile.imwrite(slide, image.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"})
        overrides = {
            "segmenter.kind": "cellpose", "segmenter.model": str(small_weights), "segmenter.device": "cpu",
            "slide.channels": [0, 1, 2], "blocks.block_shape": 256, "blocks.halo": 64, "blocks.tissue": "off",
        }  # fmt: skip
        load_segmenter.cache_clear()
        assert score(segment_serially(slide, tmp_path / "out", overrides), truth) > 0.95
        load_segmenter.cache_clear()

    @pytest.mark.parametrize("channels", [None, 1, 2, 5])
    def test_any_number_of_channels(self, small_weights: Path, channels: int | None) -> None:
        gray = draw_discs((64, 96), seed=4)[0][..., 0]
        image = gray if channels is None else np.repeat(gray[..., None], channels, axis=2)
        segmenter = cellpose.CellposeSegmenter(cellpose_settings(small_weights))
        params = segmenter.prepare(image, None)
        assert len(params["low"]) == min(channels or 1, 3)
        assert segmenter.segment(image, params).shape == (64, 96)
        assert not segmenter.segment(np.full_like(image, 1000), params).any()

    def test_options_are_cellposes(self, small_weights: Path) -> None:
        for option, words in [
            ("agument", r"segmenter.options.agument is unknown: .*augment, bsize, "),
            ("diameter", r"segmenter.options.diameter is a setting of its own"),
            ("normalize", r"segmenter.options.normalize is .*slidesam's to set"),
        ]:
            with pytest.raises(SegmenterError, match=words):
                cellpose.CellposeSegmenter(cellpose_settings(small_weights, options={option: 1}))

    def test_weights_that_do_not_fit(self, small_weights: Path, tmp_path: Path) -> None:
        import torch

        whole = torch.load(small_weights, weights_only=True)
        cases = {
            "notes.txt": (b"notes", "can't be loaded as weights of Cellpose 4 .*Cellpose 3"),
            "cyto3": ({"downsample.down.weight": torch.zeros(2)}, "no weights for Cellpose 4.*can't use those of Cellpose 3"),
            "partly": ({k: v for k, v in whole.items() if "blocks.1" not in k}, "lacks .* of the network's .* layers"),
            "other": (whole | {"out.weight": torch.zeros(3)}, "can't make its network of .*out.weight"),
            "cpdino": (whole | {"encoder.cls_token": torch.zeros(3)}, "needs dinov3"),
        }  # fmt: skip
        for name, (content, words) in cases.items():
            path = tmp_path / name
            path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
            with pytest.raises(SegmenterError, match=words) as raised:
                cellpose.CellposeSegmenter(cellpose_settings(path))
            assert "\n" not in str(raised.value)
        with pytest.raises(SegmenterError, match=r"segmenter.device is cuda, but torch .* only has .*cpu"):
            cellpose.CellposeSegmenter(Cellpose(kind="cellpose", model=str(small_weights), device="cuda"))


class TestIdentity:
    """Without torch: fast."""

    def test_of_cellpose_is_the_weights_and_versions(self, tmp_path: Path) -> None:
        for name, content in [("a", b"1"), ("b", b"1"), ("c", b"2")]:
            (tmp_path / name).write_bytes(content)
        a, b, c = (segmenter_identity(cellpose_settings(tmp_path / name), True) for name in "abc")
        assert a == b != c
        assert a.startswith("weights sha256:")
        assert ", cellpose 4." in a
        assert ", torch 2." in a

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        for model, words in [
            (None, "setting segmenter.model is needed: .*cpsam_v2"),
            (tmp_path / "away", "away is not on this machine"),
            (tmp_path, "is no file"),
        ]:
            with pytest.raises(SegmenterError, match=words) as raised:
                cellpose.identify_cellpose_weights(Cellpose(kind="cellpose", model=model and str(model)))
            assert "\n" not in str(raised.value)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[cellpose\]"'):
            cellpose.identify_cellpose_weights(Cellpose(kind="cellpose"))

    def test_cellpose_3_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "3.1.1.1")
        with pytest.raises(SegmenterError, match=r"needs Cellpose 4, and 3\.1\.1\.1 is installed"):
            cellpose.identify_cellpose_weights(Cellpose(kind="cellpose"))

    def test_importing_is_light(self) -> None:
        heavy = "{'torch', 'cellpose', 'cv2'}"
        module = "slidesam.tasks.segmenters.cellpose"
        code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
        assert done.stdout.strip() == "[]"
