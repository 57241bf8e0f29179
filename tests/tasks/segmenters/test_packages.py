"""The versions that a fingerprint holds: of all packages that compute, and of no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.segmenters import load_segmenter, packages, segmenter_identity
from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, SegmenterSettings, StarDist, Watershed
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import segment_serially

ALWAYS = {"numpy", "scipy", "imagecodecs", "slidesam"}
CELLPOSE, STARDIST = Cellpose(kind="cellpose", model="m"), StarDist(kind="stardist", model="m")
USES: list[tuple[SegmenterSettings, set[str]]] = [
    (
        MicroSam(),
        {"micro-sam", "torch", "torchvision", "pillow", "torch-em", "python-elf", "bioimage-cpp", "scikit-image"}
        | {"segment-anything-py"},
    ),
    (Watershed(kind="watershed"), {"scikit-image"}),
    (CELLPOSE, {"cellpose", "torch", "torchvision", "segment-anything-py", "opencv-python", "fastremap", "fill-voids"}),
    (STARDIST, {"stardist", "csbdeep", "tensorflow-cpu", "keras", "scikit-image"}),
    (Function(kind="function", target="my_package.module:find"), {"my_package"}),
]
INSTALLED = {name: "1.0" for _, names in USES for name in names} | dict.fromkeys((*ALWAYS, "pandas"), "2.0")
OVERRIDES = {"segmenter.kind": "watershed", "image.convert": "always", "blocks.block_shape": 64}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    versions = dict(INSTALLED)
    monkeypatch.setattr(packages, "package_version", versions.get)
    return versions


@pytest.mark.parametrize(("settings", "names"), USES)
def test_all_packages_that_compute_are_named_and_no_others(
    settings: SegmenterSettings, names: set[str], installed: dict[str, str]
) -> None:
    described = packages.describe_versions(settings)
    assert {entry.partition(" ")[0] for entry in described} == names | ALWAYS
    del installed[min(names)]
    assert len(packages.describe_versions(settings)) == len(described) - 1


def test_what_micro_sam_may_use_counts_where_it_does(installed: dict[str, str]) -> None:
    plain, cleaned = MicroSam(), MicroSam(options={"min_mask_region_area": 10})
    assert "opencv-python 1.0" not in packages.describe_versions(plain)
    assert "opencv-python 1.0" in packages.describe_versions(cleaned)
    installed |= {"mobilesam-mirror": "1.0", "timm": "1.0"}
    assert {"mobilesam-mirror 1.0", "timm 1.0"} <= set(packages.describe_versions(plain))


def upgrade(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = packages.package_version
    monkeypatch.setattr(packages, "package_version", lambda package: "99.0" if package == name else real(package))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("scikit-image", {"segment", "stitch", "export"}),
        ("imagecodecs", {"image", "segment", "stitch", "export"}),
        ("torch", set()),
    ],
)
def test_an_upgrade_computes_anew_what_depends_on_it_and_is_given_as_the_reason(
    name: str, stages: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.where(np.indices((100, 100)).sum(axis=0) // 20 % 2, 200, 10).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None)
    settings = make_settings(overrides=OVERRIDES)
    segment_serially(tmp_path / "s.tif", tmp_path / "out", OVERRIDES)
    before = plan_run(tmp_path / "s.tif", tmp_path / "out", settings)
    upgrade(monkeypatch, name)
    after = plan_run(tmp_path / "s.tif", tmp_path / "out", settings)
    assert {stage for stage in before.fingerprints if before.fingerprints[stage] != after.fingerprints[stage]} == stages
    text = "\n".join(explain(after))
    assert (f"{name} was " in text) == ("segment" in stages)
    assert ("version of imagecodecs was" in text) == ("image" in stages)


def test_a_worker_with_another_version_is_refused_by_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Watershed(kind="watershed")
    planned = segmenter_identity(settings, False)
    upgrade(monkeypatch, "scikit-image")
    load_segmenter.cache_clear()
    with pytest.raises(SegmenterError, match=r"planned with: scikit-image was [\d.]+, is 99\.0 here"):
        load_segmenter(settings.model_dump_json(), False, planned)


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys; from slidesam.tasks.segmenters.packages import describe_versions as d; "
        "from slidesam.tasks.settings.methods import MicroSam; d(MicroSam()); "
        "print(sorted({'torch', 'numpy', 'PIL', 'skimage', 'micro_sam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"numpy"}
