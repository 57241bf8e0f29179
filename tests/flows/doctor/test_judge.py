"""What the doctor makes of a worker's facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slidesam.flows.doctor.judge import compare_versions, judge
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected
from slidesam.tasks.settings.parse import make_settings
from tests.support.doctor import named
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(each) for each in THIRD_PARTY_WARNINGS]
MICROSAM = make_settings()


def test_other_versions_are_listed() -> None:
    here = {"python": "3.11.7", "slidesam": "0.1.0", "dask": "2026.8.0", "numpy": "2.4.6", "torch": "2.15.0"}
    assert compare_versions("versions", here, here, "node1").state == "ok"
    assert compare_versions("versions", here, here | {"numpy": "2.4.5", "python": "3.11.9"}, "node1").state == "warning"
    assert compare_versions("versions", here, here | {"torch": None}, "node1").state == "warning"
    for other in ({"slidesam": "0.1.1"}, {"dask": "2026.7.0"}, {"numpy": None}, {"python": "3.12.7"}):
        found = compare_versions("versions", here, here | other, "node1")
        assert found.state == "failed"
        (name,) = other
        assert f"{name} {other[name] or 'missing'} (here {here[name]})" in found.what
        assert "`python` in the profile" in found.cure


def test_what_a_worker_sees_is_judged(monkeypatch, tmp_path: Path) -> None:
    kept = {"segmenter": MICROSAM.segmenter.model_dump_json(), "identity": "vit_b_lm", "folder": str(tmp_path)}
    expected = Expected("gpu", examine.versions(), "http://10.0.0.1/api", token="t", cores=10_000, memory=1, **kept)
    facts = examine.examine(vars(replace(expected, api=None, segmenter=None)))
    facts |= {"api": ("silent", "timed out"), "segmenter": ("vit_b", "", ""), "temporary": ("/scratch", 0, "")}
    facts |= {"host": "node1", "device": {"given": "cpu", "gpus": [], "problem": ("", ""), "torch": ""}}
    found = named(judge(expected, facts))
    assert {name for name, each in found.items() if each.state == "warning"} == {
        "gpu: device", "gpu: temporary files", "gpu: size"
    }  # fmt: skip
    assert "minutes per block" in found["gpu: device"].what
    assert "--cluster slurm-gpu" in found["gpu: device"].cure
    assert "local_directory" in found["gpu: temporary files"].cure
    assert "lower gpu.cores" in found["gpu: size"].cure
    assert found["gpu: segmenter"].state == found["gpu: Prefect API"].state == "failed"
    assert "MICROSAM_CACHEDIR" in found["gpu: segmenter"].cure
    assert "firewall" in found["gpu: Prefect API"].cure
    # Nobody left a note here.
    assert "has another folder of that name" in found["gpu: output folder"].what
    facts["notes"] = ("", "Read-only file system", "node1-7")
    assert "can read" in named(judge(expected, facts))["gpu: output folder"].what
    monkeypatch.setattr("slidesam.flows.doctor.judge._PATIENCE", 0.0)
    facts["notes"] = ("", "", "node1-7")
    assert "isn't seen here" in named(judge(expected, facts))["gpu: output folder"].what
    (tmp_path / "doctor-t.node1-7").write_text("t")
    assert named(judge(expected, facts))["gpu: output folder"].state == "ok"
    facts["device"]["problem"] = (
        "node1: this worker was given the device 0, but torch finds no GPU",
        "see that nvidia-smi",
    )
    assert named(judge(expected, facts))["gpu: device"].cure == "see that nvidia-smi"
    assert len(judge(expected, facts | {"versions": facts["versions"] | {"slidesam": "0"}})) == 1
