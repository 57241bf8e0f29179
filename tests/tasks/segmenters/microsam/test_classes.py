"""Classes of objects against patho-sam's and micro-sam's own code, which runs in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fastremap
import numpy as np
import pytest
import tifffile
import zarr
from skimage.data import immunohistochemistry

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.segmenters.microsam.class_files import find_class_file
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.segmenters.votes import PATHO_SAM_CLASSES
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch.class_table import choose_classes, read_classes
from tests.support.microsam_fixtures import MICROSAM_MARKS, alone
from tests.support.serial import segment_serially

SHAPE = (256, 320)
CASES = {
    "semantic tiled": {"kind": "semantic", "tile_shape": (256, 192), "halo": (32, 32)},
    "objects": {"kind": "objects"},
    "objects tiled": {"kind": "objects", "tile_shape": (256, 192), "halo": (32, 32)},
}


def picture() -> np.ndarray:
    return immunohistochemistry()[: SHAPE[0], : SHAPE[1]]


@pytest.fixture(scope="module")
def reference(microsam_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a decoder of classes, a classifier, and what the authors' code finds with them in each case."""
    folder = tmp_path_factory.mktemp("classes")
    np.save(folder / "image.npy", picture())
    common = {"checkpoint": str(microsam_checkpoint), "image": str(folder / "image.npy")}
    cases = [
        {**common, **case, "file": str(folder / case["kind"]), "result": str(folder / f"{name}.npz")}
        for name, case in CASES.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    alone("class_reference", folder / "cases.json")
    return folder


def given(reference: Path, checkpoint: Path, name: str) -> dict[str, object]:
    """Settings of a case."""
    case = CASES[name]
    tiles = {"tile_shape": case.get("tile_shape", "off"), "tile_halo": case.get("halo", "auto")}
    file = {"classes": case["kind"], "class_file": str(reference / case["kind"])}
    trust = {"class_trust": True} if case["kind"] == "objects" else {}
    return {
        "checkpoint": str(checkpoint),
        "device": "cpu",
        "scaling": "tile",
        "tiling": "micro-sam",
        **tiles,
        **file,
        **trust,
    }


class TestAgainstTheAuthorsCode:
    pytestmark = MICROSAM_MARKS

    @pytest.mark.parametrize("name", CASES)
    def test_each_object_has_their_class_and_probability(
        self, name: str, reference: Path, microsam_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        tifffile.imwrite(tmp_path / "s.tif", picture(), photometric="rgb")
        settings = {f"segmenter.{key}": value for key, value in given(reference, microsam_checkpoint, name).items()}
        # A file may name no pickle: the person allows it.
        monkeypatch.setenv("SLIDESAM_ALLOW", str(reference / "objects"))
        settings |= {"blocks.block_shape": SHAPE, "blocks.halo": 0, "blocks.tissue": "off"}
        labels = segment_serially(tmp_path / "s.tif", tmp_path / "out", settings)
        theirs = np.load(reference / f"{name}.npz")
        their_labels, numbers = fastremap.renumber(theirs["labels"], preserve_zero=True)
        np.testing.assert_array_equal(labels, their_labels)
        order = np.argsort([numbers[value] for value in np.unique(theirs["labels"])[1:]])
        classes, probability = choose_classes(theirs["votes"][order].astype(float))
        table = read_classes(tmp_path / "out" / "s.cells.classes.csv")
        names = PATHO_SAM_CLASSES if "semantic" in name else ("background", "1", "2", "3")
        assert table["class"].tolist() == [names[number] for number in classes]
        np.testing.assert_allclose(table["probability"], probability, atol=5.1e-5)
        print(name, {kind: int((table["class"] == kind).sum()) for kind in names}, "objects of", len(table))
        assert len(table) >= 10
        wins = theirs["votes"].argmax(axis=1)
        if "semantic" in name:
            # At least three classes win, background among them, whose objects get the next class.
            assert len(set(wins)) >= 3
            assert (wins == 0).any()
            assert len(set(table["class"])) >= 3
        else:
            assert set(table["class"]) >= {"1", "3"}
        image_label = zarr.open_group(tmp_path / "out" / "s.ome.zarr/labels/cells", mode="r").attrs["ome"][
            "image-label"
        ]
        assert len(image_label["properties"]) == len(table) + 1

    def test_labels_are_those_without_classes(self, reference: Path, microsam_checkpoint: Path) -> None:
        settings = MicroSam(**given(reference, microsam_checkpoint, "semantic tiled") | {"tiling": "even"})
        labels = MicroSamSegmenter(settings, is_rgb=True).segment(picture(), {})
        without = MicroSamSegmenter(settings.model_copy(update={"classes": "off"}), is_rgb=True)
        np.testing.assert_array_equal(labels, without.segment(picture(), {}))

    def test_nothing_found_has_no_classes(self, reference: Path, microsam_checkpoint: Path) -> None:
        for name in ("semantic tiled", "objects", "objects tiled"):
            settings = MicroSam(**given(reference, microsam_checkpoint, name), options={"foreground_threshold": 2.0})
            found = MicroSamSegmenter(settings, is_rgb=True).begin(picture(), {})()
            assert not found.labels.any()
            assert found.votes.rows.shape == SHAPE

    @pytest.mark.parametrize(
        ("kind", "content", "message"),
        [
            (
                "semantic",
                b"no weights",
                r"file can't be loaded as weights of a decoder of classes .*decoder's weights alone",
            ),
            ("semantic", None, r"file can't be loaded as weights of a decoder of classes"),
            ("objects", b"no pickle", r"file can't be loaded as an object classifier .*same version of scikit-learn"),
        ],
    )
    def test_a_file_of_another_kind_is_refused(
        self, kind: str, content: bytes | None, message: str, microsam_checkpoint: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "file"
        # Without content: SAM's own weights.
        file.write_bytes(content) if content else os.link(microsam_checkpoint, file)
        settings = MicroSam(
            checkpoint=str(microsam_checkpoint), classes=kind, class_file=str(file), class_trust=kind == "objects"
        )
        with pytest.raises(SegmenterError, match=message):
            MicroSamSegmenter(settings, is_rgb=True)

    def test_names_that_are_not_as_many_as_the_classes_are_refused(
        self, reference: Path, microsam_checkpoint: Path
    ) -> None:
        settings = MicroSam(**given(reference, microsam_checkpoint, "semantic tiled"), class_names=("nothing", "round"))
        with pytest.raises(
            SegmenterError, match=r"class_names are 2, but .*semantic tells 6 classes apart: give a name"
        ):
            MicroSamSegmenter(settings, is_rgb=True)


class TestFiles:
    """What is decided without loading anything."""

    def test_a_classifier_is_a_pickle_that_must_be_trusted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SLIDESAM_ALLOW", raising=False)
        weights, forest = tmp_path / "w.pt", tmp_path / "forest.joblib"
        weights.write_bytes(b"weights")
        forest.write_bytes(b"forest")
        settings = MicroSam(model="vit_b", checkpoint=str(weights), classes="objects", class_file=str(forest))
        with pytest.raises(SegmenterError, match=r"forest.joblib is a pickle, .* `--set segmenter.class_trust=true`"):
            segmenter_identity(settings, is_rgb=True)
        # A file may say that it is trusted, but not decide it.
        trusting = settings.model_copy(update={"class_trust": True})
        with pytest.raises(
            SegmenterError, match=r"segmenter.class_trust: true isn't allowed .*`--allow .*forest.joblib`"
        ):
            segmenter_identity(trusting, is_rgb=True)
        identity = segmenter_identity(trusting, True, [str(forest)])
        forest.write_bytes(b"another")
        assert segmenter_identity(trusting, True, [str(forest)]) != identity
        assert "scikit-learn" in identity
        off = settings.model_copy(update={"classes": "off"})
        assert segmenter_identity(off, True) == segmenter_identity(
            MicroSam(model="vit_b", checkpoint=str(weights)), True
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"classes": "objects"}, r"classes: objects needs segmenter.class_file: the .joblib file"),
            (
                {"classes": "semantic", "model": "vit_b_lm"},
                r"no decoder of classes for vit_b_lm: set .*vit_b_histopathology",
            ),
            ({"classes": "semantic", "checkpoint": "w.pt"}, r"no decoder of classes for your own checkpoint"),
            ({"classes": "semantic", "class_file": "/none/d.pt"}, r"class_file /none/d.pt is no file on this machine"),
            (
                {"classes": "semantic"},
                r"models/vit_b_hist\w+_decoder is not on this machine: .*slidesam models fetch vit_b_hist",
            ),
        ],
    )
    def test_a_file_that_is_not_there(self, changes: dict, message: str, cache: Path) -> None:
        with pytest.raises(SegmenterError, match=message):
            find_class_file(MicroSam(**changes), is_rgb=True)

    def test_a_file_of_the_registry_s_name_with_another_hash_is_refused(self, cache: Path) -> None:
        path = cache / "models" / "vit_b_histopathology_semantic_segmentation_decoder"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"something else")
        with pytest.raises(SegmenterError, match=r"is not the file of slidesam's registry: .*slidesam models fetch"):
            find_class_file(MicroSam(classes="semantic"), is_rgb=True)

    def test_planning_names_the_pickle_that_is_trusted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from slidesam.tasks.plan import explain

        forest, weights = tmp_path / "forest.joblib", tmp_path / "w.pt"
        forest.write_bytes(b"forest")
        weights.write_bytes(b"weights")
        tifffile.imwrite(tmp_path / "s.tif", picture(), photometric="rgb")
        monkeypatch.setenv("SLIDESAM_ALLOW", f"{tmp_path}/*")
        values = {
            "model": "vit_b",
            "checkpoint": str(weights),
            "classes": "objects",
            "class_file": str(forest),
            "class_trust": True,
        }
        settings = make_settings(overrides={f"segmenter.{key}": value for key, value in values.items()})
        run = plan_run(tmp_path / "s.tif", tmp_path / "out", settings)
        assert run.permitted == (str(forest),)
        assert any("forest.joblib is unpickled" in line and "class_trust" in line for line in explain(run))


def test_off_in_yaml_is_off() -> None:
    assert MicroSam(classes=False).classes == "off"
