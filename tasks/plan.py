"""What is to be done for one slide, found out before anything is computed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slidesam.tasks import omezarr
from slidesam.tasks.config import Settings
from slidesam.tasks.errors import OutputError
from slidesam.tasks.segmenters import package_version, segmenter_identity
from slidesam.tasks.slide import open_slide
from slidesam.tasks.work import Run, block_facts, read_json, work_folder, write_json

# Packages whose version can change a pixel.
_PACKAGES = (
    "slidesam",
    "numpy",
    "scipy",
    "scikit-image",
    "tifffile",
    "imagecodecs",
    "zarr",
    "fastremap",
    "torch",
    "micro-sam",
)


def plan_run(slide: Path, output: Path, settings: Settings) -> Run:
    """Inspects the slide and the segmenter; reads metadata only.

    Args:
        slide: The slide file or OME-Zarr folder.
        output: The output folder; made if it isn't there.
        settings: What to compute.

    Raises:
        SlideError: The slide can't be read.
        SettingsError: A setting doesn't suit the slide.
        SegmenterError: The segmenter's weights or function aren't there.
        OutputError: The output folder can't be written.
    """
    facts = open_slide(slide, settings.slide)
    run = Run(
        slide=facts,
        output=output.resolve(),
        settings=settings,
        segmenter_identity=segmenter_identity(settings.segmenter, facts.is_rgb),
    )
    check_output(run.output)
    return run


def check_output(output: Path) -> None:
    """Makes the output folder.

    Raises:
        OutputError: It can't be made or written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"output folder {output} can't be made ({os.strerror(error.errno or 0)}): choose another"
        ) from error
    if not os.access(output, os.W_OK):
        raise OutputError(f"output folder {output} can't be written: choose another, or mend its permissions")


def finished_facts(run: Run) -> dict[str, Any] | None:
    """The provenance of this very run if it is finished, else None."""
    facts = read_json(run.provenance)
    if facts is None or facts.get("fingerprints") != run.fingerprints:
        return None
    return facts if omezarr.is_finished(run.store, run.label) else None


def note_finished(run: Run, facts: dict[str, Any]) -> None:
    """Sets right what `slidesam status` would show of a run that is finished: a later call may have failed early."""
    state = read_json(run.work / "state.json") or {}
    if state.get("status") != "finished":
        started = {
            "blocks": len(run.grid),
            "segment_folder": run.segment_folder.name,
            "slide_path": str(run.slide.path),
        }
        write_state(run.output, run.name, run.label, "finished", objects=facts["objects"], **started)


def write_state(output: Path, name: str, label: str, status: str, **facts: Any) -> None:
    """Notes for `slidesam status` how a run stands: running, stopped, failed or finished."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(work_folder(output, name, label) / "state.json", {"status": status, "updated": now, **facts})


def read_states(output: Path) -> list[dict[str, Any]]:
    """The noted states of all runs of an output folder, by name and label; blocks done are counted anew."""
    states = []
    for path in sorted((output / ".slidesam").glob("*/*/state.json")):
        state = read_json(path) or {"status": "unreadable"}
        segment = state.get("segment_folder")
        done = len(list((path.parent / segment / "marks").glob("[0-9]*.json"))) if segment else 0
        states.append({"slide": path.parents[1].name, "label": path.parent.name, "blocks_done": done, **state})
    return states


def provenance(run: Run, *, objects: int, seconds: dict[str, float]) -> dict[str, Any]:
    """How the result was made: enough to make it again, or to say why another differs.

    Args:
        run: The run, all of whose blocks are segmented.
        objects: Number of objects.
        seconds: Per stage, the wall time of its tasks added up.
    """
    prepared = read_json(run.segment_folder / "params.json") or {}
    marks = [block_facts(run, block_id) or {} for block_id in range(len(run.grid))]
    return {
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "slide": run.slide.model_dump(mode="json"),
        "label": run.label,
        "objects": objects,
        "blocks": len(run.grid),
        "settings": run.settings.model_dump(mode="json"),
        "segmenter": {
            "identity": run.segmenter_identity,
            "params": prepared.get("params"),
            "fill": prepared.get("fill"),
            # More than one of either: a run that was resumed elsewhere.
            "devices": sorted({str(mark.get("device")) for mark in marks}),
            "threads": sorted({str(mark.get("threads")) for mark in marks}),
        },
        "fingerprints": run.fingerprints,
        "task_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": {name: version for name in _PACKAGES if (version := package_version(name))},
    }
