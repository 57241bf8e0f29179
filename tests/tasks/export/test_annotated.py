"""AnnData of a real run, opened by anndata: the numbers of the table."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from slidesam.flows.slide import order
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.export import annotated, rows
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import EXECUTOR, segment_serially
from tests.tasks.export.test_files import SETTINGS, result, run, small_tiles, with_output

__all__ = ["result", "run", "small_tiles"]
# anndata warns of its own ways.
pytestmark = pytest.mark.filterwarnings("ignore")


def export(run: Run) -> anndata.AnnData:
    order.export_objects(with_output(run, formats=("table", "anndata")), EXECUTOR)
    return anndata.read_h5ad(run.paths.objects("h5ad"))


def test_numbers_are_those_of_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several pieces.
    monkeypatch.setattr(rows, "_ROWS", 100)
    found = export(run)
    table = pq.read_table(run.paths.objects("parquet"))
    assert found.n_obs == len(table) > 300
    assert found.X.dtype == np.float32
    for name in found.var_names:
        np.testing.assert_array_equal(found[:, name].X[:, 0], table[name].to_numpy().astype(np.float32), err_msg=name)
    for name in found.obs:
        np.testing.assert_array_equal(found.obs[name].to_numpy(), table[name].to_numpy(), err_msg=name)
    centroids = [f"centroid{unit}-{axis}" for unit in ("", "_um") for axis in (1, 0)]
    assert {"slide", *found.var_names, *found.obs, *centroids} == set(table.column_names)
    for name, columns in {"spatial": centroids[:2], "spatial_um": centroids[2:]}.items():
        np.testing.assert_array_equal(found.obsm[name], table.select(columns).to_pandas())
    assert found.obs_names.tolist() == [str(number) for number in table["label"].to_pylist()]
    assert found.var["description"]["area_um2"] == "Area in µm²."
    noted = found.uns["slidesam"]
    assert (noted["slide"], noted["label"], noted["record"]) == (run.name, "cells", run.paths.provenance.name)
    assert noted["mpp_yx"].tolist() == [0.5, 0.5]


def test_columns_of_texts_are_categories(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    described = annotated.describe_columns

    def read(run: Run, names: list[str]) -> object:
        for piece in rows.read_rows(run, [name for name in names if name != "class"]):
            yield piece | {"class": np.where(piece["label"] % 3 == 0, "Tumour é", "Stroma")}

    monkeypatch.setattr(annotated, "describe_columns", lambda run: described(run) | {"class": "Its class."})
    monkeypatch.setattr(annotated, "read_types", lambda run: rows.read_types(run) | {"class": np.dtype("U8")})
    monkeypatch.setattr(annotated, "read_rows", read)
    found = export(run).obs
    assert found["class"].cat.categories.tolist() == ["Stroma", "Tumour é"]
    assert ((found["class"] == "Tumour é") == (found["label"] % 3 == 0)).all()


def test_bytes_are_equal_and_rows_are_read_from_the_file(run: Run) -> None:
    export(run)
    expected = run.paths.objects("h5ad").read_bytes()
    run.paths.objects("h5ad").unlink()
    # HDF5 would write times in seconds.
    time.sleep(1.1)
    export(run)
    assert run.paths.objects("h5ad").read_bytes() == expected
    backed = anndata.read_h5ad(run.paths.objects("h5ad"), backed="r")
    assert backed[5:9].to_memory().shape == (4, backed.n_vars)
    backed.file.close()


def test_nothing_found_is_an_empty_table(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "blank.tif", np.full((256, 256), 9, np.uint8), tile=(64, 64))
    settings = SETTINGS | {"blocks.block_shape": 256}
    segment_serially(tmp_path / "blank.tif", tmp_path / "out", settings)
    found = export(plan_run(tmp_path / "blank.tif", tmp_path / "out", make_settings(overrides=settings)))
    assert found.n_obs == 0
    assert "area" in found.var_names


def test_without_h5py_it_is_refused_when_planning(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    wanted = make_settings(overrides=SETTINGS | {"output.formats": ["table", "anndata"]})
    with pytest.raises(SettingsError, match=r'anndata needs h5py.*pip install "slidesam\[anndata\]"'):
        plan_run(run.slide.path, tmp_path / "new", wanted)
    assert not (tmp_path / "new").exists()
    # A worker that lacks it costs the other formats nothing.
    warnings: list[str] = []
    monkeypatch.setattr(type(EXECUTOR), "warn", lambda _, message: warnings.append(message))
    order.export_objects(with_output(run, formats=("anndata", "table")), EXECUTOR)
    assert run.paths.objects("parquet").exists()
    assert "anndata of its objects can't be written: writing AnnData needs h5py" in warnings[0]
