"""`slidesam export`: files of the objects of a finished result, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import slidesam
from slidesam.tasks.run.records import FileList
from tests.flows.cli.test_app import errors_of, home
from tests.flows.cli.test_app import slidesam as call
from tests.support.slides import write_numbered_slide

__all__ = ["home"]
SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16, "segmenter.threshold": 0.5}


@pytest.mark.slow
def test_files_of_the_objects_are_written_for_a_finished_result(home: Path, tmp_path: Path) -> None:
    slide, output = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    slidesam.segment(slide, output, SETTINGS | {"output.formats": []}, progress=False)
    assert not list(output.glob("*objects*"))
    labels = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    wanted = ("--format", "outlines", "--format", "report", "--simplify", 2)
    done = call("export", output / "s.ome.zarr", *wanted, "--workers", 1, home=home)
    assert done.returncode == 0, done.stderr
    assert "its labels are finished, files of its objects are missing" in done.stderr
    assert sorted(path.name for path in output.glob("*objects*")) == [
        "s.cells.objects.geojson.gz",
        "s.cells.objects.json",
    ]
    assert "s: 9 cells" in (output / "s.cells.report.html").read_text()
    assert set(FileList.read(output / "s.cells.objects.json").units) == {"outlines-2.0", "report"}
    changed = [path for path, time in labels.items() if path.stat().st_mtime_ns != time]
    assert [path.name for path in changed] == ["state.json"]
    wrong = call("export", output / "s.ome.zarr", "--format", "pdf", home=home)
    assert wrong.returncode != 0
    (error,) = errors_of(wrong)
    assert "output.formats" in error
    assert "'table', 'outlines'" in error
