"""micro-sam's registry of weights, read without micro-sam."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.flows.cli.models import _PURPOSES
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.microsam import registry as models
from slidesam.tasks.segmenters.microsam.registry import (
    CLASS_DECODERS,
    MODELS,
    OVERRIDES,
    Registered,
    list_files,
    read_registry,
)
from tests.support.weights_mirror import NEEDS_MICROSAM

pytestmark = NEEDS_MICROSAM


class TestRegistry:
    def test_every_model_has_its_files_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pooch")
        monkeypatch.delenv(OVERRIDES, raising=False)
        known = read_registry()
        for model in MODELS:
            for file in list_files(model):
                assert known[file].algorithm == "xxh128"
                assert len(known[file].digest) == 32
                assert known[file].url.startswith("https://")
        assert known.keys() == {file for model in (*MODELS, *CLASS_DECODERS.values()) for file in list_files(model)}

    def test_decoders_of_classes_have_a_hash_that_cannot_be_forged(self) -> None:
        (file,) = list_files(CLASS_DECODERS["vit_b_histopathology"])
        assert read_registry()[file].algorithm == "sha256"
        assert len(read_registry()[file].digest) == 64
        assert CLASS_DECODERS.keys() <= MODELS.keys()

    def test_every_model_is_for_something(self) -> None:
        assert {model[len("vit_b") :] for model in MODELS} == _PURPOSES.keys()

    def test_reading_it_is_light(self) -> None:
        code = (
            "import sys; from slidesam.tasks.segmenters.microsam.registry import read_registry; assert read_registry();"
            "print({'torch', 'micro_sam', 'napari'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
        assert done.stdout == "set()\n"

    @pytest.mark.parametrize("source", ["def models(): return {}", "def models(: {", "m = {'a': 'sha256:0011'}", "\0"])
    def test_of_a_micro_sam_that_keeps_it_otherwise_is_empty(self, source: str, tmp_path: Path) -> None:
        (tmp_path / "util.py").write_text(source)
        assert models._parse_registry(tmp_path / "util.py") == {}
        assert models._parse_registry(tmp_path / "none.py") == {}

    def test_is_read_where_it_stands_in_other_words(self, tmp_path: Path) -> None:
        (tmp_path / "util.py").write_text(
            "def models():\n    return make({'a': 'sha256:00112233445566778899', 'b': name},\n"
            "                urls={'a': 'https://there/a', **more}, path='x')\n"
        )
        assert models._parse_registry(tmp_path / "util.py") == {
            "a": Registered("sha256:00112233445566778899", "https://there/a")
        }

    def test_lines_of_ones_own_go_before_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = read_registry()
        monkeypatch.setenv(OVERRIDES, str(tmp_path / "mine.txt"))
        (tmp_path / "mine.txt").write_text(f"vit_b {'0' * 64}\nvit_l sha256:{'1' * 64} http://mirror/l\n")
        changed = {key: entry for key, entry in read_registry().items() if entry != theirs[key]}
        assert changed == {
            "vit_b": Registered("0" * 64, theirs["vit_b"].url),
            "vit_l": Registered(f"sha256:{'1' * 64}", "http://mirror/l"),
        }
        assert changed["vit_b"].algorithm == "sha256"
        (tmp_path / "mine.txt").write_text("vit_b\n")
        with pytest.raises(SettingsError, match=r"SLIDESAM_MODELS names .*mine.txt, which can't be used"):
            read_registry()

    def test_a_model_that_there_is_not(self) -> None:
        with pytest.raises(SettingsError, match=r"no model 'cyto3'.*vit_b_lm"):
            list_files("cyto3")
