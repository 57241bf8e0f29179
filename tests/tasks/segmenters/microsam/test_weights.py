"""Which weights a run uses, and what they are: asked before a run, and by each worker before it loads them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.registry import Registered
from slidesam.tasks.segmenters.microsam.weights import choose_model, identify_model
from slidesam.tasks.settings.methods import MicroSam
from tests.support.weights_mirror import CONTENTS, ENCODER, NEEDS_MICROSAM


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
        assert choose_model(MicroSam(model=model), is_rgb) == name

    def test_missing_weights_say_where_and_how(self, tmp_path: Path) -> None:
        with pytest.raises(SegmenterError) as raised:
            identify_model(MicroSam(), is_rgb=False)
        message = str(raised.value)
        assert "\n" not in message
        for part in (
            "vit_b_lm",
            str(tmp_path / "models"),
            "slidesam models fetch vit_b_lm",
            "MICROSAM_CACHEDIR",
            "segmenter.model=nuclei-small",
            "watershed",
        ):
            assert part in message

    def test_a_missing_decoder_is_missing_weights(self, tmp_path: Path) -> None:
        (tmp_path / "models" / "vit_b_lm").write_bytes(b"encoder")
        with pytest.raises(SegmenterError, match="has no vit_b_lm_decoder"):
            identify_model(MicroSam(), is_rgb=False)

    def test_identity_follows_both_files(self, tmp_path: Path) -> None:
        seen = set()
        for encoder, decoder in [(b"a", b"b"), (b"aa", b"b"), (b"a", b"bb"), (b"b", b"a")]:
            (tmp_path / "models" / "vit_b_lm").write_bytes(encoder)
            (tmp_path / "models" / "vit_b_lm_decoder").write_bytes(decoder)
            seen.add(identify_model(MicroSam(), is_rgb=False))
        assert len(seen) == 4
        assert all(identity.startswith("vit_b_lm sha256:") for identity in seen)

    def test_identity_of_a_checkpoint_is_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "a.pt").write_bytes(b"weights")
        shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
        first, second = (identify_model(MicroSam(checkpoint=str(tmp_path / name)), True) for name in ("a.pt", "b.pt"))
        assert first == second
        assert first.startswith("checkpoint sha256:")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (MicroSam(model="vit_t_lm"), "weights of model vit_t_lm are not on this machine"),
            (MicroSam(model="cyto3"), "no model 'cyto3': choose one of vit_t, vit_b, .*or nuclei-small"),
            (MicroSam(model="cyto3", checkpoint="x.pt"), "names no architecture"),
            (MicroSam(model="nuclei-small", checkpoint="x.pt"), "names no architecture"),
            (MicroSam(model="nuclei-small", mode="amg"), "mode amg needs SAM's mask decoder.* set segmenter.mode: ais"),
            (MicroSam(checkpoint="/nowhere/x.pt"), "/nowhere/x.pt is no file"),
            (MicroSam(model="vit_b", mode="ais"), "model vit_b has none"),
        ],
    )
    def test_refusals(self, settings: MicroSam, message: str) -> None:
        with pytest.raises(SegmenterError, match=message):
            identify_model(settings, is_rgb=True)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SegmenterError, match=r'pip install "slidesam\[micro-sam\]"'):
            identify_model(MicroSam(), is_rgb=False)

    @pytest.mark.parametrize("model", ["vit_t_lm", "nuclei-small"])
    def test_of_vit_t_without_mobile_sam(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mobile_sam" else object())
        with pytest.raises(SegmenterError, match=r'needs mobile_sam, .*pip install "slidesam\[micro-sam\]"'):
            identify_model(MicroSam(model=model), is_rgb=False)


class TestIdentity:
    """What is asked before a run, and by each worker before it loads weights. Without torch."""

    pytestmark = NEEDS_MICROSAM

    def test_of_the_registered_files(self, fetched: Path) -> None:
        content = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in CONTENTS.values()))
        assert identify_model(MicroSam(), is_rgb=False) == f"vit_b_lm sha256:{content.hexdigest()}"

    @pytest.mark.parametrize("file", CONTENTS)
    def test_another_file_is_refused(self, file: str, fetched: Path) -> None:
        # Of the same size, so that only its hash can tell.
        (fetched / file).write_bytes(CONTENTS[file][:-1] + b"!")
        with pytest.raises(SegmenterError) as raised:
            identify_model(MicroSam(), is_rgb=False)
        for words in (str(fetched / file), "isn't loaded", "xxh128:", "`slidesam models fetch vit_b_lm`"):
            assert words in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_file_that_changes_afterwards_is_refused(self, fetched: Path) -> None:
        identify_model(MicroSam(), is_rgb=False)
        (fetched / "vit_b_lm").write_bytes(ENCODER[::-1])
        with pytest.raises(SegmenterError, match="isn't loaded"):
            identify_model(MicroSam(), is_rgb=False)

    def test_each_file_is_read_once(self, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, really = [], Path.open

        def counted(path: Path, *arguments: object, **more: object):
            opened.append(path.name)
            return really(path, *arguments, **more)

        monkeypatch.setattr(Path, "open", counted)
        for _ in range(3):
            identify_model(MicroSam(), is_rgb=False)
        assert [name for name in opened if name in CONTENTS] == list(CONTENTS)

    def test_a_checkpoint_of_ones_own_can_be_anything(self, fetched: Path) -> None:
        (fetched / "vit_b").write_bytes(b"mine")
        own = MicroSam(model="vit_b", checkpoint=str(fetched / "vit_b"))
        assert identify_model(own, is_rgb=False).startswith("checkpoint sha256:")
        with pytest.raises(SegmenterError, match="isn't loaded"):
            identify_model(MicroSam(model="vit_b"), is_rgb=False)

    @pytest.mark.parametrize("known", [{}, {name: Registered("whirlpool9:00112233445566778899") for name in CONTENTS}])
    def test_what_cannot_be_checked_is_said_not_refused(
        self,
        known: dict[str, Registered],
        fetched: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("slidesam.tasks.segmenters.microsam.weights.read_registry", lambda: known)
        with caplog.at_level(logging.WARNING):
            assert identify_model(MicroSam(), is_rgb=False).startswith("vit_b_lm sha256:")
        assert f"finds no hash of {fetched / 'vit_b_lm'}" in caplog.text

    def test_missing_ones_name_the_cure(self, cache: Path) -> None:
        with pytest.raises(
            SegmenterError, match="`slidesam models fetch vit_b_histopathology --cache FOLDER`"
        ) as raised:
            identify_model(MicroSam(), is_rgb=True)
        assert "set MICROSAM_CACHEDIR=FOLDER here and for the workers" in str(raised.value)
