"""Where files of the output folder lie: older runs are found only as long as this holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.run.layout import (
    RunPaths,
    find_provenance,
    jobs_folder,
    list_noted_runs,
    list_runs,
    list_slide_folders,
)
from slidesam.tasks.run.service_folders import inbox_lock, inbox_memory
from slidesam.tasks.run.stage_folders import ImageFolder, PaintFolder, SegmentFolder, StageFolder, StitchFolder

OUT = Path("/out")
RUN = RunPaths(OUT, "CMU-1", "cells")
F = OUT / "f"

PATHS = {
    RUN.store: "CMU-1.ome.zarr",
    RUN.label_image: "CMU-1.ome.zarr/labels/cells",
    RUN.provenance: "CMU-1.cells.run.json",
    RUN.overlay: "CMU-1.cells.overlay.png",
    RUN.classes: "CMU-1.cells.classes.csv",
    RUN.objects("json"): "CMU-1.cells.objects.json",
    RUN.export("report.html"): "CMU-1.cells.report.html",
    RUN.work: ".slidesam/CMU-1/cells",
    RUN.lock: ".slidesam/CMU-1/cells/lock.json",
    RUN.state: ".slidesam/CMU-1/cells/state.json",
    RUN.image.work: ".slidesam/CMU-1/.image",
    RUN.image.lock: ".slidesam/CMU-1/.image/lock.json",
    jobs_folder(OUT): ".slidesam/.jobs",
    StageFolder(F).causes: "f/causes.json",
    StageFolder(F).arrays_mark: "f/started.json",
    StageFolder(F).mark("0-3"): "f/marks/0-3.json",
    ImageFolder(F).pixels_mark: "f/done.json",
    ImageFolder(F).pixels: "f/pixels.zarr",
    SegmentFolder(F).params: "f/params.json",
    SegmentFolder(F).tissue: "f/tissue.arrays",
    SegmentFolder(F).block(7): "f/blocks/7.arrays",
    SegmentFolder(F).start_mark(7): "f/starts/7.json",
    SegmentFolder.trace(SegmentFolder(F).start_mark(7)): "f/starts/7.trace.txt",
    StitchFolder(F).overlaps("0-8"): "f/overlaps/0-8.arrays",
    StitchFolder(F).numbering: "f/numbering.arrays",
    StitchFolder(F).resolved: "f/resolved.json",
    PaintFolder(F).measures("0-8"): "f/measures/0-8.arrays",
}


@pytest.mark.parametrize(("path", "place"), PATHS.items(), ids=PATHS.values())
def test_files_lie_where_they_always_have(path: Path, place: str) -> None:
    assert path == OUT / place


def test_an_inbox_is_known_by_its_folder() -> None:
    memory = inbox_memory(OUT, Path("/arrivals"))
    assert (memory.parent, len(memory.stem), memory.suffix) == (OUT / ".slidesam/.inbox", 12, ".json")
    assert inbox_lock(memory).name == f"{memory.stem}.lock.json"
    assert inbox_memory(OUT, Path("/other")) != memory


def test_runs_are_found_by_their_folders(tmp_path: Path) -> None:
    runs = [RunPaths(tmp_path, name, label) for name in ("a", "b") for label in ("cells", "nuclei")]
    for run in (*runs, runs[0].image):
        run.work.mkdir(parents=True)
    jobs_folder(tmp_path).mkdir()
    runs[2].state.touch()
    assert list_slide_folders(tmp_path) == [runs[0].work.parent, runs[2].work.parent]
    assert list_runs(runs[0].work.parent) == runs[:2]
    assert list_noted_runs(tmp_path) == [runs[2]]
    assert list_noted_runs(tmp_path / "none") == []


def test_stage_folders_are_found_whatever_their_fingerprint(tmp_path: Path) -> None:
    run = RunPaths(tmp_path, "a", "cells")
    for name in ("segment-2", "stitch-1", "segment-1"):
        (run.work / name).mkdir(parents=True)
    (run.work / "segment-3").symlink_to(run.work / "segment-1")
    (run.work / "segment-4").touch()
    assert [path.name for path in run.stage_folders("stitch", "segment")] == ["stitch-1", "segment-1", "segment-2"]


def test_provenance_is_that_of_this_slide_only(tmp_path: Path) -> None:
    for name in ("a.cells", "a.nuclei", "a.b.cells", "ab.cells", "[a].cells"):
        (tmp_path / f"{name}.run.json").touch()
    assert list(find_provenance(tmp_path, "a")) == ["cells", "nuclei"]
    assert list(find_provenance(tmp_path, "a.b")) == ["cells"]
    assert find_provenance(tmp_path, "[a]") == {"cells": tmp_path / "[a].cells.run.json"}
