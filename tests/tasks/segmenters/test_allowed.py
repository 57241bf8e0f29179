"""Which code a segmenter may load, and that what isn't allowed is neither imported nor made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.segment.prepare import load_run_segmenter
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.segmenters.allowed import GROUP, VARIABLE, list_own_words, permit
from slidesam.tasks.settings.methods import Function, MicroSam, Watershed
from slidesam.tasks.settings.parse import make_settings
from tests.support.slides import write_numbered_slide


def function(target: str, **options: object) -> Function:
    return Function(kind="function", target=target, options=options)


@pytest.fixture
def left_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that appears when the package `hostile` is imported, or anything of it is called."""
    left = tmp_path / "left"
    package = tmp_path / "path" / "hostile"
    package.mkdir(parents=True)
    leave = f"import pathlib; pathlib.Path({str(left)!r}).touch()"
    (package / "__init__.py").write_text(f"{leave}\n")
    (package / "inner.py").write_text("def find(image): return image\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.delenv(VARIABLE)
    load_segmenter.cache_clear()
    yield left
    load_segmenter.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "hostile"]:
        del sys.modules[name]


@pytest.mark.parametrize("target", ["hostile.inner:find", "hostile:find", "subprocess:Popen"])
def test_what_only_a_file_names_is_refused_before_it_is_imported(left_file: Path, target: str) -> None:
    marker = left_file.with_name("made")
    settings = function(target, args=["touch", str(marker)])
    with pytest.raises(
        SegmenterError, match=rf"{target} isn't allowed.*--allow {target}.*{VARIABLE}={target}.*{GROUP}"
    ):
        segmenter_identity(settings, False)
    with pytest.raises(SegmenterError, match="isn't allowed"):
        load_segmenter(settings.model_dump_json(), False, "whatever the run says")
    assert not left_file.exists()
    assert not marker.exists()


def test_a_run_is_refused_before_its_slide_is_opened(left_file: Path, tmp_path: Path) -> None:
    settings = make_settings({"segmenter": {"kind": "function", "target": "hostile:find"}})
    with pytest.raises(SegmenterError, match="isn't allowed"):
        plan_run(tmp_path / "isn't there.tif", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["hostile.inner:find", "hostile.inner", "hostile.*", "other, hostile.inner"])
def test_a_site_allows_by_patterns(left_file: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pattern)
    assert permit(function("hostile.inner:find"), ()) == ("hostile.inner:find",)


def test_a_package_allows_by_an_entry_point(left_file: Path, tmp_path: Path) -> None:
    facts = tmp_path / "path" / "hostile-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\nfind = hostile.inner:find\n")
    assert permit(function("hostile.inner:find"), ()) == ("hostile.inner:find",)
    with pytest.raises(SegmenterError, match="isn't allowed"):
        permit(function("hostile.inner:other"), ())


def test_permission_travels_with_the_run_and_is_in_no_file(left_file: Path, tmp_path: Path) -> None:
    slide, output = write_numbered_slide(tmp_path / "slide.tif"), tmp_path / "out"
    settings = make_settings({"segmenter": {"kind": "function", "target": "hostile.inner:find"}})
    run = plan_run(slide, output, settings, ("hostile.inner",))
    assert run.permitted == ("hostile.inner:find",)
    image = np.zeros((2, 2), np.uint8)
    assert load_run_segmenter(run).segment(image, {}) is image
    load_segmenter.cache_clear()
    with pytest.raises(SegmenterError, match="isn't allowed"):
        load_run_segmenter(run.model_copy(update={"permitted": ()}))
    assert "permitted" not in str(run.causes) + str(settings.model_dump())


def test_only_what_a_person_types_is_a_word_of_its_own() -> None:
    own = function("own.spots:find")
    assert list_own_words(own, {"segmenter.target": "own.spots:find"}) == ("own.spots:find",)
    assert list_own_words(own, {"segmenter.options": {}}) == ()
    trusted = MicroSam(model="vit_b", checkpoint="/weights.pt", trust=True)
    assert list_own_words(trusted, {"segmenter.trust": True}) == ("/weights.pt",)
    assert list_own_words(trusted, {"segmenter.checkpoint": "/weights.pt"}) == ()
    assert list_own_words(Watershed(kind="watershed"), {"segmenter.trust": True}) == ()


def test_trust_in_a_checkpoint_is_a_persons_or_a_sites_word(monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = MicroSam(model="vit_b", checkpoint="/models/weights.pt", trust=True)
    with pytest.raises(
        SegmenterError, match=r"trust: true isn't allowed for /models/weights.pt.*--allow /models/weights.pt"
    ):
        permit(trusted, ())
    assert permit(trusted, ("/models/*",)) == ("/models/weights.pt",)
    monkeypatch.setenv(VARIABLE, "/models/weights.pt")
    assert permit(trusted, ()) == ("/models/weights.pt",)
    assert permit(MicroSam(model="vit_b", checkpoint="/models/weights.pt"), ()) == ()


@pytest.mark.parametrize(
    ("checkpoint", "allow"),
    [
        ("/site/models/../../tmp/evil.pt", "/site/models/*"),
        ("/tmp/evil/../../site/models/x.pt", "/site/models/*"),
        ("own.pt", "own.*"),
        ("own.pt", "own.pt"),
        ("/tmp/evil.pt", "*"),
        ("/tmp/evil.pt", "*.pt"),
    ],
)
def test_a_sites_pattern_allows_no_checkpoint_that_lies_elsewhere(
    checkpoint: str, allow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, allow)
    with pytest.raises(SegmenterError, match="isn't allowed for"):
        permit(MicroSam(model="vit_b", checkpoint=checkpoint, trust=True), ())


@pytest.mark.parametrize("checkpoint", ["/data/models[1]/x.pt", "/data/a,b/x.pt", "own[1].pt", "/data/../x.pt"])
def test_a_checkpoint_that_a_person_names_is_no_pattern(checkpoint: str) -> None:
    trusted = MicroSam(model="vit_b", checkpoint=checkpoint, trust=True)
    assert permit(trusted, list_own_words(trusted, {"segmenter.trust": True})) == (checkpoint,)


@pytest.mark.parametrize("checkpoint", ["/data/models[1]/x.pt", "/data/a,b/x.pt"])
def test_a_site_names_a_file_with_brackets_or_commas(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, checkpoint)
    assert permit(MicroSam(model="vit_b", checkpoint=checkpoint, trust=True), ()) == (checkpoint,)


def test_a_file_is_no_pattern_for_functions(left_file: Path) -> None:
    with pytest.raises(SegmenterError, match="isn't allowed"):
        permit(function("hostile.inner:find"), ("/*", "/site/models/x.pt"))
