"""`slidesam doctor --try-model`: which models workers try on the tile that slidesam ships, and what their counts mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slidesam.flows.doctor.finding import Finding, State, check
from slidesam.tasks.folder.examine import Expected
from slidesam.tasks.segmenters.microsam.shipped import NUCLEI_SMALL
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.trial.self_test import TILE_OBJECTS

# Longest time that two models may take in addition to the wait for workers, on a CPU.
TRIAL_SECONDS = 480.0


def add_trials(needs: Expected) -> Expected:
    """Let a worker try the model that is shipped, and the settings' own where its weights are there and the worker segments."""
    shipped = MicroSam(model=NUCLEI_SMALL).model_dump_json()
    own = (needs.segmenter,) if needs.segmenter and needs.identity and needs.segmenter != shipped else ()
    return replace(needs, trials=(shipped, *own))


def judge_trial(expected: Expected, trial: Mapping[str, Any], host: str) -> Finding:
    """Judge what a model found in the tile that slidesam ships."""
    name = f"{expected.pool}: {trial['name']}"
    # A worker that doesn't segment needs no model.
    state: State = "warning" if expected.segmenter is None else "failed"
    if "problem" in trial:
        return Finding(
            name, state, f"{host}: {trial['problem']}", trial["cure"] or "see that its packages are installed there"
        )
    recorded = trial["recorded"]
    known = (
        f"{recorded} were recorded" if recorded is not None else f"people outlined {TILE_OBJECTS}, no count is recorded"
    )
    text = (
        f"{trial['count']} objects in the shipped tile ({known}) in {trial['seconds']:.1f} s on {trial['device']}, after "
        f"{trial['load_seconds']:.1f} s to load"
    )
    cure = "compare the versions of torch and micro-sam with those here; other labels are to be expected of this worker"
    return check(name, (not trial["is_alike"], "warning", text, cure), ok=text)
