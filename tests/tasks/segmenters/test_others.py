"""Cellpose and StarDist behind slidesam's interface, and the example of a package of one's own.

Cellpose is the real one, with a small network (cellpose_small.py). TensorFlow is no part of the tests' environment, so that
StarDist itself runs in `make stardist`; here is what can be said without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import cellpose, load_segmenter, segmenter_identity, stardist
from slidesam.tasks.segmenters.normalize import normalized, slide_range
from slidesam.tasks.settings.methods import Cellpose, Function, StarDist
from tests.support import ROOT
from tests.support.cellpose_small import make_weights, use_small_network
from tests.support.discs import draw_discs
from tests.support.same import assert_same_segmentation, score
from tests.support.serial import segment_serially

EXAMPLE = ROOT / "docs" / "examples" / "own_segmenter"

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


def stardist_folder(folder: Path, *weights: str) -> Path:
    """A folder that looks like a StarDist model."""
    folder.mkdir()
    (folder / "config.json").write_text('{"n_dim": 2}')
    for name in weights:
        (folder / name).write_bytes(name.encode())
    return folder


class TestIdentity:
    """Without torch and TensorFlow: fast."""

    @pytest.fixture
    def _all_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

    def test_of_cellpose_is_the_weights_and_versions(self, tmp_path: Path) -> None:
        for name, content in [("a", b"1"), ("b", b"1"), ("c", b"2")]:
            (tmp_path / name).write_bytes(content)
        a, b, c = (segmenter_identity(cellpose_settings(tmp_path / name), True) for name in "abc")
        assert a == b != c
        assert a.startswith("weights sha256:")
        assert ", cellpose 4." in a
        assert ", torch 2." in a

    @pytest.mark.usefixtures("_all_installed")
    def test_of_stardist_is_the_model_that_is_used(self, tmp_path: Path) -> None:
        def identity(folder: Path) -> str:
            return stardist.model_identity(StarDist(kind="stardist", model=str(folder)))

        folder = stardist_folder(tmp_path / "model", "weights_best.h5", "weights_last.h5")
        first = identity(folder)
        assert first.startswith("model sha256:")
        assert identity(shutil.copytree(folder, tmp_path / "copy")) == first
        (folder / "weights_last.h5").write_bytes(b"another")
        assert identity(folder) == first
        seen = {first}
        for name in ("weights_best.h5", "thresholds.json", "config.json"):
            (folder / name).write_text('{"n_dim": 2, "other": 1}')
            seen.add(identity(folder))
        assert len(seen) == 4

    @pytest.mark.usefixtures("_all_installed")
    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        stardist_folder(tmp_path / "none")
        stardist_folder(tmp_path / "two", "a.h5", "b.h5")
        (tmp_path / "empty").mkdir()
        for model, words in [
            (None, "setting segmenter.model is needed: the path of the folder"),
            (tmp_path / "away", "away is not on this machine"),
            (tmp_path / "empty", "has no config.json"),
            (tmp_path / "none", "one file of weights .*, and has none"),
            (tmp_path / "two", r"has several: a\.h5, b\.h5"),
        ]:
            with pytest.raises(SegmenterError, match=words) as raised:
                stardist.model_identity(StarDist(kind="stardist", model=model and str(model)))
            assert "\n" not in str(raised.value)

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        for model, words in [
            (None, "setting segmenter.model is needed: .*cpsam_v2"),
            (tmp_path / "away", "away is not on this machine"),
            (tmp_path, "is no file"),
        ]:
            with pytest.raises(SegmenterError, match=words) as raised:
                cellpose.model_identity(Cellpose(kind="cellpose", model=model and str(model)))
            assert "\n" not in str(raised.value)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[cellpose\]"'):
            cellpose.model_identity(Cellpose(kind="cellpose"))
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[stardist\]" tensorflow'):
            stardist.model_identity(StarDist(kind="stardist"))

    def test_cellpose_3_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "3.1.1.1")
        with pytest.raises(SegmenterError, match=r"needs Cellpose 4, and 3\.1\.1\.1 is installed"):
            cellpose.model_identity(Cellpose(kind="cellpose"))

    def test_importing_is_light(self) -> None:
        heavy = "{'torch', 'tensorflow', 'cellpose', 'stardist', 'cv2'}"
        modules = "slidesam.tasks.segmenters.cellpose, slidesam.tasks.segmenters.stardist"
        code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
        assert done.stdout.strip() == "[]"


class TestNormalize:
    def test_channels_keep_to_themselves_or_go_together(self) -> None:
        sample = np.stack([np.arange(101), 10 * np.arange(101)], axis=1)[None]
        assert slide_range(sample, (1, 99)) == {"low": [1.0, 10.0], "high": [99.0, 990.0]}
        together = slide_range(sample, (0, 100), jointly=True)
        assert together == {"low": [0.0, 0.0], "high": [1000.0, 1000.0]}

    @pytest.mark.parametrize("value", [0, 7, 65535])
    def test_a_blank_slide_is_all_zero(self, value: int) -> None:
        blank = np.full((8, 8), value, np.uint16)
        assert not normalized(blank, slide_range(blank, (1, 99))).any()

    def test_what_is_no_number_is_left_out(self) -> None:
        image = np.array([[np.nan, 1.0], [2.0, np.inf]])
        found = slide_range(image, (0, 100))
        assert found == {"low": [1.0], "high": [2.0]}
        assert normalized(image, found)[..., 0].tolist() == [[0, 0], [1, 0]]
        assert slide_range(np.full((2, 2), np.nan), (0, 100)) == {"low": [0.0], "high": [1.0]}

    def test_a_range_for_other_channels_is_refused(self) -> None:
        with pytest.raises(SegmenterError, match="for 1 channels, but the block has 3"):
            normalized(np.zeros((2, 2, 3)), {"low": [0.0], "high": [1.0]})


@pytest.fixture(scope="module")
def own_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which pip has installed the example, as anyone's package; to be put on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("own")
    # Building writes beside the sources.
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(folder / "installed"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "installed"


@pytest.fixture
def own_segmenter(own_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, importable as on a worker that has its package."""
    monkeypatch.syspath_prepend(str(own_package))
    monkeypatch.delitem(sys.modules, "own_segmenter", raising=False)
    load_segmenter.cache_clear()
    import own_segmenter

    yield own_segmenter
    load_segmenter.cache_clear()
    sys.modules.pop("own_segmenter", None)


OWN_TARGETS = {
    "own_segmenter:bright_spots": {"threshold": 2500.0},
    "own_segmenter:BrightSpots": {"sigma": 1.0, "min_diameter": 4.0},
}


class TestOwnSegmenter:
    """docs/own-segmenter.md and its example."""

    @pytest.fixture
    def slide(self, tmp_path: Path) -> Path:
        path = tmp_path / "spots.tif"
        tifffile.imwrite(path, draw_discs((300, 420), seed=6)[0][..., 0], tile=(64, 64))
        return path

    @pytest.mark.parametrize("target", OWN_TARGETS)
    def test_blocks_find_what_the_whole_image_holds(
        self, target: str, own_segmenter: ModuleType, slide: Path, tmp_path: Path
    ) -> None:
        options = OWN_TARGETS[target]
        image = tifffile.imread(slide)
        if target.endswith("bright_spots"):
            whole = own_segmenter.bright_spots(image, **options)
        else:
            alone = own_segmenter.BrightSpots(**options)
            whole = alone.segment(image, alone.prepare(image, SimpleNamespace(mpp=None)))
        overrides = {
            "segmenter.kind": "function", "segmenter.target": target, "segmenter.options": options,
            "blocks.block_shape": 64, "blocks.halo": 32,
        }  # fmt: skip
        blocks = segment_serially(slide, tmp_path / "out", overrides)
        assert whole.max() > 100
        assert_same_segmentation(blocks, whole)

    def test_its_version_and_source_are_its_identity(self, own_segmenter: ModuleType) -> None:
        settings = Function(kind="function", target="own_segmenter:BrightSpots")
        identity = segmenter_identity(settings, False)
        source = hashlib.sha256((EXAMPLE / "own_segmenter.py").read_bytes()).hexdigest()[:16]
        assert identity.startswith(f"own_segmenter:BrightSpots sha256:{source}, numpy ")
        assert ", own_segmenter 0.1.0, " in identity

    def test_one_block_can_be_tried(self, own_package: Path, slide: Path, tmp_path: Path) -> None:
        target = ["--set", "segmenter.kind=function", "--set", "segmenter.target=own_segmenter:BrightSpots"]
        blocks = ["--set", "blocks.block_shape=128", "--set", "blocks.halo=32"]
        script = [sys.executable, "-W", "ignore", str(EXAMPLE / "try_block.py")]
        done = subprocess.run(
            [*script, str(slide), "--output", str(tmp_path / "tried"), *target, *blocks],
            capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(own_package), "PREFECT_HOME": str(tmp_path / "prefect")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.search(r"block \d+ of 12: \d\d objects, parameters {'threshold': .*, picture ", done.stdout)
        (picture,) = (tmp_path / "tried").glob("block-*.png")
        assert (np.asarray(Image.open(picture)) == (0, 255, 0)).all(axis=2).any()
