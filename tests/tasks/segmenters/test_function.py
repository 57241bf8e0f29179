"""A user's own method: docs/own-segmenter.md and its example package."""

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
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.segmenters.function import load_function
from slidesam.tasks.settings.methods import Function
from tests.support import ROOT
from tests.support.discs import draw_discs
from tests.support.same import assert_same_segmentation
from tests.support.serial import segment_serially

EXAMPLE = ROOT / "docs" / "examples" / "own_segmenter"


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
        assert identity.startswith(f"own_segmenter:BrightSpots sha256:{source}, own_segmenter 0.1.0, numpy ")

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


CALLS: list[str] = []


class NoSegmenter:
    """A class that does something when it is made."""

    def __init__(self) -> None:
        CALLS.append("made")


class WrongArguments(NoSegmenter):
    """Has the methods' names only."""

    def prepare(self, sample: object) -> dict[str, object]:
        return {}

    def segment(self, image: object) -> object:
        return image


class WrongOptions(NoSegmenter):
    """A segmenter that takes no options."""

    def prepare(self, sample: object, slide: object) -> dict[str, object]:
        return {}

    def segment(self, image: object, params: object) -> object:
        return image


def takes_nothing() -> None:
    CALLS.append("called")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("NoSegmenter", {}, "is a class without prepare and segment"),
        ("WrongArguments", {}, r"its prepare doesn't take \(sample, slide\)"),
        ("WrongOptions", {"sigma": 1}, "can't be made with segmenter.options"),
        ("takes_nothing", {}, "can't be called with an image"),
        ("CALLS", {}, "is neither a function nor a class"),
    ],
)
def test_what_is_no_segmenter_is_refused_before_it_is_made_or_called(name: str, options: dict, words: str) -> None:
    CALLS.clear()
    with pytest.raises(SegmenterError, match=words):
        load_function(Function(kind="function", target=f"{__name__}:{name}", options=options))
    assert CALLS == []
