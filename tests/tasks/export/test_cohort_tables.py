"""The tables of many slides as one data set, by the lines of docs/results.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars  # noqa: F401 (it sets an environment variable when it is imported, which no test may do)
import pytest
import tifffile

from slidesam.flows.slide import order
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from tests.support import ROOT
from tests.support.serial import EXECUTOR, segment_serially
from tests.support.slides import write_numbered_slide

SETTINGS = {
    "segmenter.kind": "watershed",
    "segmenter.diameter": 16,
    "segmenter.threshold": 0.5,
    "blocks.block_shape": 128,
    "blocks.halo": 32,
    "blocks.tissue": "off",
    "output.formats": ["table"],
}
SECTION = re.compile(r"^## Open the tables of many slides.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_lines(source: str) -> list[Any]:
    """Run lines as a notebook does; what each expression gives."""
    names: dict[str, Any] = {}
    values = []
    for line in ast.parse(source).body:
        if isinstance(line, ast.Expr):
            values.append(eval(compile(ast.Expression(line.value), "docs", "eval"), names))
        else:
            exec(compile(ast.Module([line], []), "docs", "exec"), names)
    return values


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a grey slide, and of one with two channels and a pixel size."""
    folder = tmp_path_factory.mktemp("cohort")
    grey = write_numbered_slide(folder / "grey.tif", 2, 2)
    image = tifffile.imread(grey)
    channels = np.stack([image, image // 2])
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "two.ome.tif", channels, metadata=metadata, photometric="minisblack", tile=(64, 64))
    for slide, chosen in ((grey, SETTINGS), (folder / "two.ome.tif", SETTINGS | {"slide.channels": ["DAPI", "FITC"]})):
        segment_serially(slide, folder / "results", chosen)
        order.export_objects(plan_run(slide, folder / "results", make_settings(overrides=chosen)), EXECUTOR)
    return folder


def test_each_line_opens_all_tables_with_the_columns_of_all(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cohort)
    section = SECTION.search((ROOT / "docs" / "results.md").read_text())
    assert section is not None
    by_pandas, by_polars, by_duckdb = run_lines(section[1])
    tables = [by_pandas, by_polars.to_pandas(), by_duckdb.df()]
    (count,) = {len(table) for table in tables}
    for table in tables:
        assert table.columns[0] == "slide"
        assert {"intensity_mean-DAPI", "intensity_mean-FITC", "area_um2", "area"} <= set(table.columns)
        of_two = table["slide"] == "two"
        assert set(table["slide"]) == {"grey", "two"}
        assert 0 < of_two.sum() < count
        assert table["intensity_mean-DAPI"].notna().equals(of_two)
        assert table["area"].notna().all()
    (columns,) = {frozenset(table.columns) for table in tables}
    assert len(columns) == len(by_pandas.columns)
    sums = {table["area"].sum() for table in tables}
    assert len(sums) == 1
