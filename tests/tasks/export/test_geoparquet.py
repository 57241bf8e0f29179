"""GeoParquet of a real run: what its specification asks for, read by geopandas; the same outlines as the GeoJSON's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile

from slidesam.flows.slide import order
from slidesam.tasks.export import describe
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import EXECUTOR, segment_serially
from tests.tasks.export.test_files import SETTINGS, read_features, result, run, small_tiles, with_output

__all__ = ["result", "run", "small_tiles"]


@pytest.fixture
def both(run: Run) -> Run:
    """The run with GeoJSON and GeoParquet written."""
    asking = with_output(run, formats=("outlines", "geoparquet"))
    order.export_objects(asking, EXECUTOR)
    return asking


def path_of(run: Run) -> Path:
    return run.paths.objects("outlines.parquet")


def test_geopandas_reads_the_outlines_of_the_geojson(both: Run) -> None:
    frame = geopandas.read_parquet(path_of(both))
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert frame["label"].is_monotonic_increasing
    with gzip.open(both.paths.objects("geojson.gz")) as file:
        of_geojson = geopandas.read_file(file)
    assert len(frame) == len(of_geojson) > 300
    # GeoJSON is in the order of tiles.
    assert sorted(of_geojson.geometry.to_wkb()) == sorted(frame.geometry.to_wkb())
    assert frame.geometry.area.tolist() == frame["area"].tolist()
    bounds = frame[["bbox-1", "bbox-0", "bbox-3", "bbox-2"]].to_numpy()
    np.testing.assert_array_equal(frame.geometry.bounds.to_numpy(), bounds)
    # The column of boxes serves reading a part.
    part = geopandas.read_parquet(path_of(both), bbox=(0, 0, 100, 50))
    assert part["label"].tolist() == frame["label"][(bounds[:, 0] <= 100) & (bounds[:, 1] <= 50)].tolist()


def test_metadata_are_those_of_geoparquet(both: Run) -> None:
    """https://geoparquet.org/releases/v1.1.0/."""
    file = pq.ParquetFile(path_of(both))
    content = json.loads(file.schema_arrow.metadata[b"geo"])
    geometry = content["columns"]["geometry"]
    shapes = shapely.from_wkb(file.read(["geometry"])["geometry"].to_pylist())
    assert (content["version"], content["primary_column"]) == ("1.1.0", "geometry")
    assert geometry == {
        "encoding": "WKB",
        "geometry_types": sorted({shape.geom_type for shape in shapes}),
        "crs": None,
        "edges": "planar",
        "bbox": list(shapely.total_bounds(shapes)),
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    # "geometry" is a BYTE_ARRAY at the root, required or optional, not repeated.
    (column,) = (
        file.schema.column(number)
        for number in range(len(file.schema))
        if file.schema.column(number).path == "geometry"
    )
    assert (column.physical_type, column.max_repetition_level) == ("BYTE_ARRAY", 0)


def test_what_is_asked_for_later_measures_nothing_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order.export_objects(with_output(run, formats=("table", "outlines")), EXECUTOR)
    monkeypatch.setattr(describe, "measure_objects", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(describe, "encode_features", lambda *_: pytest.fail("written"))
    later = with_output(run, formats=("table", "outlines", "geoparquet"))
    assert missing_formats(later) == ["geoparquet"]
    order.export_objects(later, EXECUTOR)
    columns = pq.read_table(path_of(run)).drop_columns(["bbox", "geometry"])
    assert columns.equals(pq.read_table(run.paths.objects("parquet")))


def test_another_tolerance_writes_outlines_again_and_no_table(both: Run) -> None:
    order.export_objects(with_output(both, formats=("table",)), EXECUTOR)
    table = run_facts(both, "parquet")
    paths = [both.paths.objects(suffix) for suffix in ("geojson.gz", "outlines.parquet")]
    exact = [path.read_bytes() for path in paths]
    simple = with_output(both, formats=("table", "outlines", "geoparquet"), simplify=1.5)
    assert simple.fingerprints == both.fingerprints
    assert missing_formats(simple) == ["outlines", "geoparquet"]
    order.export_objects(simple, EXECUTOR)
    assert missing_formats(simple) == []
    assert missing_formats(both) == ["outlines", "geoparquet"]
    assert run_facts(both, "parquet") == table
    frame = geopandas.read_parquet(path_of(both))
    assert frame.geometry.is_valid.all()
    features = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in read_features(both)]
    assert sorted(shapely.to_wkb(features)) == sorted(frame.geometry.to_wkb())
    n_points = shapely.get_num_coordinates(frame.geometry.to_numpy()).sum()
    # Back to the pixels' borders: equal bytes.
    order.export_objects(with_output(both, formats=("table", "outlines", "geoparquet")), EXECUTOR)
    assert [path.read_bytes() for path in paths] == exact
    exact_shapes = geopandas.read_parquet(path_of(both)).geometry.to_numpy()
    assert n_points < shapely.get_num_coordinates(exact_shapes).sum() / 2


def run_facts(run: Run, suffix: str) -> tuple[int, int]:
    facts = run.paths.objects(suffix).stat()
    return facts.st_mtime_ns, facts.st_ino


def test_nothing_found_is_an_empty_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "blank.tif", np.full((256, 256), 9, np.uint8), tile=(64, 64))
    settings = SETTINGS | {"blocks.block_shape": 256}
    segment_serially(tmp_path / "blank.tif", tmp_path / "out", settings)
    run = plan_run(tmp_path / "blank.tif", tmp_path / "out", make_settings(overrides=settings))
    order.export_objects(with_output(run, formats=("geoparquet",)), EXECUTOR)
    frame = geopandas.read_parquet(path_of(run))
    assert (len(frame), frame.crs) == (0, None)
