"""The contact sheet: each result with its numbers and a link, those that stand out by the rule, and failures with their cure."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.pages import contact_sheet
from slidesam.tasks.pages.contact_sheet import make_contact_sheet
from slidesam.tasks.pages.html import write_number
from slidesam.tasks.pages.sheet_slides import summarise_areas
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.status import write_state
from tests.support.pages import Page, read_page
from tests.support.slides import write_blobs
from tests.tasks.pages.test_slide_page import make

HOSTILE = "<b onclick=alert(1)>&\"'x"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with six results of nearly the same numbers and one with many more objects, and a failed slide."""
    output = tmp_path_factory.mktemp("sheet") / "out"
    run, _ = make(write_blobs(output.parent / "first.tif", 256), output, slide__mpp=0.5)
    for number, name in enumerate(("b", "c", "d", "e", HOSTILE, "far")):
        copy_result(run.paths, RunPaths(output, name, "cells"), 1000 if name == "far" else 100 + number)
    write_record(run.paths, run.paths, 102)
    write_state(output, "torn", "cells", "failed", error="torn.tif: truncated; copy it again <here>", blocks=9)
    return output


def copy_result(source: RunPaths, target: RunPaths, objects: int) -> None:
    """Copies a result under another name, with another number of objects."""
    shutil.copytree(source.store, target.store)
    for path in (source.objects("parquet"), source.export("report.html")):
        shutil.copy(path, target.output / path.name.replace(source.name, target.name, 1))
    write_record(source, target, objects)


def write_record(source: RunPaths, target: RunPaths, objects: int) -> None:
    record: dict[str, Any] = json.loads(source.provenance.read_text())
    record["slide"]["name"], record["objects"] = target.name, objects
    record.pop("crc32c", None)
    target.provenance.write_text(json.dumps(record))


def read_sheet(folder: Path) -> Page:
    reports = {quote(path.name) for path in folder.glob("*.cells.report.html")}
    page = read_page(make_contact_sheet(folder), reports)
    # Each report is linked from its name and its picture.
    assert sorted(load for load in page.loads if load in reports) == sorted([*reports, *reports])
    return page


def test_each_result_is_there_with_its_numbers(folder: Path) -> None:
    page = read_sheet(folder)
    areas = pq.read_table(folder / "first.cells.objects.parquet")["area_um2"].to_numpy()
    first, median, third = map(write_number, np.percentile(areas, (25, 50, 75)).tolist())
    assert page.text.count(f"area {median} µm², half lie between {first} and {third}") == 7
    assert "7 results" in page.text
    assert f"103 cells {write_number(103 / (256 * 256 * 0.25 / 1e6))} per mm²" in page.text
    assert page.tags["article"] == page.tags["img"] == 7
    assert HOSTILE in page.text


def test_what_stands_out_is_marked(folder: Path) -> None:
    cards = re.findall(r'<article( class="far")? data-name="([^"]*)"', make_contact_sheet(folder))
    assert [name for mark, name in cards if mark] == ["far"]
    assert "1 stand out" in read_sheet(folder).text


def test_failures_come_with_their_cure(folder: Path) -> None:
    page = read_sheet(folder)
    assert "torn cells failed 0 of 9 torn.tif: truncated; copy it again <here>" in page.text
    assert f"slidesam retry {folder}" in page.text


def test_a_result_that_cannot_be_drawn_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "b.ome.zarr")
    (tmp_path / "out" / "c.cells.objects.parquet").unlink()
    page = read_sheet(tmp_path / "out")
    assert page.tags["article"] == 7
    assert page.tags["img"] == 6
    assert "it can't be drawn" in page.text
    assert page.text.count("half lie between") == 6


def test_pictures_are_smaller_where_there_are_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(make_contact_sheet(folder))
    monkeypatch.setattr(contact_sheet, "_MANY", 3)
    assert len(make_contact_sheet(folder)) < 0.8 * size


def test_the_command_writes_the_same_page_each_time(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    page = folder / "report.html"
    assert page.read_text() == make_contact_sheet(folder)
    page.unlink()
    for wrong, words in ((tmp_path, "has no results of slidesam"), (tmp_path / "none", "is not a folder")):
        error = CliRunner().invoke(app, ["report", str(wrong)]).exception
        assert isinstance(error, SettingsError)
        assert words in str(error)


def test_a_table_without_objects_has_no_areas(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "x", "cells")
    assert summarise_areas(paths) is None
    pq.write_table(pa.table({"area": pa.array([], pa.float64())}), paths.objects("parquet"))
    assert summarise_areas(paths) is None
    pq.write_table(pa.table({"area": pa.array([2, 4, 9])}), paths.objects("parquet"))
    assert summarise_areas(paths) == ((3.0, 4.0, 6.5), "px²")
