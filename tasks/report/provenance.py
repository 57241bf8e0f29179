"""How a result was made: `<name>.<label>.run.json`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.marks import find_mark, list_blocks, read_params
from slidesam.tasks.run.records import SeamReport
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters import package_version
from slidesam.tasks.store.ome_zarr import is_finished

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
    "cellpose",
    "stardist",
    "tensorflow",
)


def finished_facts(run: Run) -> dict[str, Any] | None:
    """The provenance of this very run if it is finished, else None."""
    facts = read_json(run.paths.provenance)
    if facts is None or facts.get("fingerprints") != run.fingerprints:
        return None
    return facts if is_finished(run.store, run.label) else None


def provenance(run: Run, *, objects: int, seams: SeamReport, seconds: dict[str, float]) -> dict[str, Any]:
    """How the result was made: enough to make it again, or to say why another differs.

    Args:
        run: The run, all of whose blocks are segmented.
        objects: Number of objects.
        seams: The report on them, as `seam_report.make_report` returns it.
        seconds: Per stage, the wall time of its tasks added up.
    """
    found = read_params(run)
    kept = list_blocks(run)
    marks = [mark for block_id in kept if (mark := find_mark(run, block_id)) is not None]
    left_out = sorted(set(range(len(run.grid))) - set(kept))
    return {
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "slide": run.slide.model_dump(mode="json"),
        "label": run.label,
        "objects": objects,
        "blocks": len(run.grid),
        "blocks_without_tissue": left_out,
        "image": {
            "mode": run.image_plan.mode,
            "reason": run.image_plan.reason,
            "read_amplification_in_place": round(run.image_plan.amplification, 2),
        },
        "settings": run.settings.model_dump(mode="json"),
        "segmenter": {
            "identity": run.segmenter_identity,
            "params": found.params,
            "fill": found.fill,
            # More than one of either: a run that was resumed elsewhere.
            "devices": sorted({str(mark.device) for mark in marks}),
            "threads": sorted({str(mark.threads) for mark in marks}),
            **{
                name: sorted({str(value) for mark in marks if (value := getattr(mark, name)) is not None})
                for name in ("precision", "batch_size")
            },
        },
        "fingerprints": run.fingerprints,
        "task_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": {name: version for name in _PACKAGES if (version := package_version(name))},
        # Last, as it is long.
        "seams": seams.model_dump(mode="json"),
    }
