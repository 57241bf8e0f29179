"""`slidesam seams`: the report on seams as people read it, and the errors of the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from slidesam.tasks.errors import OutputError, SettingsError, SlidesamError
from tests.support.command_line import PIECES, run_and_read
from tests.support.records import finished_record
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide


def run_seams(*arguments: object) -> str:
    return run_and_read("seams", *arguments)


def error_of(*arguments: object) -> SlidesamError:
    error = CliRunner().invoke(app, ["seams", *map(str, arguments)]).exception
    assert isinstance(error, SlidesamError)
    return error


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Two labels of a slide of 2 × 2 blocks of 64 px: bars of 60 px across the upper seam, a square where all blocks meet."""
    folder = tmp_path_factory.mktemp("seams")
    image = np.zeros((128, 128), np.uint8)
    for row in range(4):
        image[4 + 12 * row : 10 + 12 * row, 34:94] = 9
    image[58:70, 58:70] = 9
    tifffile.imwrite(folder / "bars [1].tif", image, tile=(64, 64))
    segment_serially(folder / "bars [1].tif", folder / "out", PIECES)
    segment_serially(folder / "bars [1].tif", folder / "out", PIECES | {"output.label": "wide", "blocks.halo": 48})
    return folder / "out"


def test_the_command_says_what_happened_where_and_what_to_do(output) -> None:
    store = output / "bars [1].ome.zarr"
    words = run_seams(store, "--label", "cells")
    for line in (
        "bars [1]: 5 cells in 4 blocks of 64 × 64 px with a halo of 16 px",
        "objects 5 objects that a block owns in part and that reach into what the other owns",
        "united 4 80 % painted in fragments, because no block sees them whole or blocks disagree on their parts",
        "note: 80 % of the 5 objects at seams are wider than the halo of 16 px: raise it to 32 (blocks.halo)",
        "objects lie at 6 of 6 seams; at 1 blocks disagree or see only fragments (--all lists all):",
        "row 0, column 0 row 0, column 1 side by side 5 5 0 0 4 0 0",
    ):
        assert line in words
    assert "row 1" not in words
    everything = run_seams(store, "--label", "cells", "--all")
    assert "row 0, column 0 row 1, column 0 above and below 1 1 0 0 0 0 0" in everything
    assert everything.count("at a corner") == 2


def test_the_command_reports_on_each_label_and_takes_what_the_shell_completes(output, monkeypatch) -> None:
    words = run_seams(f"{output / 'bars [1].ome.zarr'}/")
    assert words.index("5 cells") < words.index("5 wide")
    assert "and blocks agree at all of them" in words
    assert "note:" not in run_seams(output / "bars [1].ome.zarr", "--label", "wide")
    monkeypatch.chdir(output / "bars [1].ome.zarr")
    assert run_seams(".") == words


@pytest.mark.parametrize(
    ("halo", "words"),
    [(16, "no object lies at a seam"), (0, "note: with a halo of 0 px every object at a seam stays cut")],
)
def test_no_object_at_a_seam(halo: int, words: str, tmp_path) -> None:
    segment_serially(write_numbered_slide(tmp_path / "n.tif"), tmp_path / "out", PIECES | {"blocks.halo": halo})
    printed = run_seams(tmp_path / "out" / "n.ome.zarr")
    assert words in printed
    assert "matched" not in printed


def test_a_slide_in_one_block_has_no_seams(tmp_path) -> None:
    slide = write_numbered_slide(tmp_path / "n.tif")
    segment_serially(slide, tmp_path / "out", PIECES | {"blocks.block_shape": 256})
    assert run_seams(tmp_path / "out" / "n.ome.zarr") == "n: the slide is one block, so it has no seams"


def test_errors_name_what_there_is(output, tmp_path) -> None:
    store = output / "bars [1].ome.zarr"
    for arguments, words in (
        ([tmp_path / "gone.ome.zarr"], "gone.ome.zarr is not a result: give <name>.ome.zarr"),
        ([output], f"such as {store}"),
        ([store, "--label", "nuclei"], "no finished label image 'nuclei', only cells and wide"),
    ):
        error = error_of(*arguments)
        assert isinstance(error, SettingsError)
        assert words in str(error)


def test_results_that_are_not_finished_or_from_before_the_report(tmp_path) -> None:
    store, record = tmp_path / "a.ome.zarr", finished_record()
    store.mkdir()
    # Of a slide called a.b, and one that is damaged.
    record.write(tmp_path / "a.b.cells.run.json")
    (tmp_path / "a.bad.run.json").write_bytes(b"\xff")
    assert "none of its label images is finished; `slidesam status" in str(error_of(store))
    record.write(tmp_path / "a.cells.run.json")
    error = error_of(store)
    assert isinstance(error, OutputError)
    assert "cells was made by a version of slidesam without the report on seams" in str(error)


def test_results_of_a_version_that_cannot_be_read(tmp_path) -> None:
    store = tmp_path / "a.ome.zarr"
    store.mkdir()
    (tmp_path / "a.cells.run.json").write_text('{"objects": 3}')
    error = error_of(store)
    assert isinstance(error, OutputError)
    assert (
        "a.cells.run.json was written by another version of slidesam, which this one can't read (slide, label"
        in str(error)
    )
