"""StarDist behind slidesam's interface, without TensorFlow: StarDist itself runs in `make stardist`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import stardist
from slidesam.tasks.settings.methods import StarDist


def stardist_folder(folder: Path, *weights: str) -> Path:
    """A folder that looks like a StarDist model."""
    folder.mkdir()
    (folder / "config.json").write_text('{"n_dim": 2}')
    for name in weights:
        (folder / name).write_bytes(name.encode())
    return folder


class TestIdentity:
    @pytest.fixture
    def _all_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

    @pytest.mark.usefixtures("_all_installed")
    def test_of_stardist_is_the_model_that_is_used(self, tmp_path: Path) -> None:
        def identity(folder: Path) -> str:
            return stardist.identify_stardist_model(StarDist(kind="stardist", model=str(folder)))

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
                stardist.identify_stardist_model(StarDist(kind="stardist", model=model and str(model)))
            assert "\n" not in str(raised.value)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[stardist\]" tensorflow'):
            stardist.identify_stardist_model(StarDist(kind="stardist"))

    def test_importing_is_light(self) -> None:
        heavy = "{'torch', 'tensorflow', 'stardist', 'cv2'}"
        module = "slidesam.tasks.segmenters.stardist"
        code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
        assert done.stdout.strip() == "[]"
