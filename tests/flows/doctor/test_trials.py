"""`slidesam doctor --try-model`: which models are tried, what is said of their counts, and the trial itself."""

from __future__ import annotations

import importlib.util

import pytest

from slidesam.flows.doctor.trials import add_trials, judge_trial
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected
from slidesam.tasks.settings.methods import MicroSam, Watershed
from slidesam.tasks.trial.self_test import TILE_OBJECTS, try_segmenter

OWN = Watershed(kind="watershed", diameter=8).model_dump_json()
FOUND = {"name": "nuclei-small", "count": 66, "recorded": 64, "is_alike": True, "seconds": 2.0, "load_seconds": 9.0}
FOUND |= {"device": "cuda"}


def test_workers_try_the_shipped_model_and_those_that_segment_the_settings_own() -> None:
    cpu, gpu = Expected("cpu", {}), Expected("gpu", {}, segmenter=OWN, identity="watershed")
    assert [len(add_trials(needs).trials) for needs in (cpu, gpu)] == [1, 2]
    assert "nuclei-small" in add_trials(cpu).trials[0]
    # Without its weights here, the settings' own isn't tried.
    assert len(add_trials(Expected("gpu", {}, segmenter=OWN)).trials) == 1
    shipped = MicroSam(model="nuclei-small").model_dump_json()
    assert add_trials(Expected("gpu", {}, segmenter=shipped, identity="nuclei-small")).trials == (shipped,)


def test_counts_are_judged() -> None:
    gpu = Expected("gpu", {}, segmenter=OWN)
    finding = judge_trial(gpu, FOUND, "node1")
    assert (finding.name, finding.state) == ("gpu: nuclei-small", "ok")
    assert "66 objects in the shipped tile (64 were recorded) in 2.0 s on cuda, after 9.0 s to load" in finding.what
    assert judge_trial(gpu, FOUND | {"count": 40, "is_alike": False}, "node1").state == "warning"
    assert f"people outlined {TILE_OBJECTS}" in judge_trial(gpu, FOUND | {"recorded": None}, "node1").what


@pytest.mark.parametrize(
    ("needs", "state"), [(Expected("gpu", {}, segmenter=OWN), "failed"), (Expected("cpu", {}), "warning")]
)
def test_a_model_that_fails_is_named_with_what_to_do(needs: Expected, state: str) -> None:
    finding = judge_trial(needs, {"name": "vit_b_lm", "problem": "no weights", "cure": "fetch them"}, "node1")
    assert (finding.state, finding.what, finding.cure) == (state, "node1: no weights", "fetch them")


def test_the_shipped_tile_is_segmented_by_any_segmenter() -> None:
    found = try_segmenter(OWN)
    assert found["name"] == "watershed"
    assert found["count"] == pytest.approx(TILE_OBJECTS, rel=0.5)
    assert found["device"] == "cpu"
    facts = examine.examine({"temporary": "", "api": None, "segmenter": None, "folder": None, "trials": [OWN]})
    assert facts["trials"][0]["count"] == found["count"]


def test_what_keeps_a_model_from_being_made_is_told() -> None:
    missing = MicroSam(checkpoint="/nowhere/weights.pt").model_dump_json()
    found = try_segmenter(missing)
    assert set(found) == {"name", "problem", "cure"}
    assert "/nowhere/weights.pt" in found["problem"]


@pytest.mark.slow
@pytest.mark.microsam
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("micro_sam") is None, reason="micro_sam is not installed")
def test_the_shipped_model_finds_what_was_recorded() -> None:
    found = try_segmenter(MicroSam(model="nuclei-small", device="cpu").model_dump_json())
    assert found.get("problem") is None, found
    assert found["recorded"] is not None
    assert found["is_alike"]
