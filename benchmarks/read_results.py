"""Read a result as other packages do, and compare; `benchmarks/readers.py` calls it in an environment of theirs."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pandas
import scanpy
import spatialdata
from numpy.typing import NDArray

NAME = "discs.cells"


def main() -> None:
    """Say each thing on a line; end with 1 if one isn't as it should be."""
    output = Path(sys.argv[1])
    labels = np.load(output / "labels.npy")
    failed = 0
    for check in (check_outlines, check_anndata, check_spatialdata):
        for words, is_right in check(output, labels):
            print("ok    " if is_right else "FAILED", words, flush=True)
            failed += not is_right
    packages = ("scanpy", "anndata", "spatialdata", "geopandas", "duckdb", "zarr", "pandas")
    print(", ".join(f"{name} {version(name)}" for name in packages) + f": {failed} failed")
    sys.exit(bool(failed))


def check_outlines(output: Path, labels: NDArray[np.integer]) -> Iterator[tuple[str, bool]]:
    """GeoJSON and GeoParquet by geopandas, GeoParquet by duckdb."""
    areas = np.bincount(labels.ravel())[1:]
    path = output / f"{NAME}.objects.outlines.parquet"
    frame = geopandas.read_parquet(path)
    yield f"geopandas reads {len(frame)} outlines of GeoParquet", len(frame) == labels.max() > 100
    yield (
        "they are valid, and as large as the objects",
        bool(frame.geometry.is_valid.all() and (frame.geometry.area.to_numpy() == areas[frame["label"] - 1]).all()),
    )
    with gzip.open(output / f"{NAME}.objects.geojson.gz") as file:
        features = geopandas.read_file(file)
    yield "those of the GeoJSON are the same", sorted(features.geometry.to_wkb()) == sorted(frame.geometry.to_wkb())
    rows = duckdb.sql(f"select count(*), sum(area) from '{path}' where area > 0").fetchall()
    yield "duckdb counts and sums them", rows == [(len(frame), areas.sum())]


def check_anndata(output: Path, labels: NDArray[np.integer]) -> Iterator[tuple[str, bool]]:
    """AnnData by scanpy: read, and worked on as scanpy does."""
    found = scanpy.read_h5ad(output / f"{NAME}.objects.h5ad")
    table = pandas.read_parquet(output / f"{NAME}.objects.parquet")
    yield f"scanpy reads {found.n_obs} objects × {found.n_vars} measurements", found.n_obs == labels.max()
    centroids = table[["centroid-1", "centroid-0"]].to_numpy()
    yield "coordinates are the centroids", np.array_equal(found.obsm["spatial"], centroids)
    yield "areas are the table's", np.array_equal(found[:, "area"].X[:, 0], table["area"].to_numpy(np.float32))
    varied = found[:, found.X.std(axis=0) > 1e-3].copy()
    scanpy.pp.scale(varied)
    scanpy.pp.pca(varied, n_comps=3)
    scanpy.pp.neighbors(varied, n_neighbors=6, use_rep="X_pca")
    yield "scaling, principal components and neighbours run", varied.obsp["connectivities"].nnz > 0
    varied.write_h5ad(output / "again.h5ad")
    again = scanpy.read_h5ad(output / "again.h5ad")
    yield "what scanpy writes of it reads again", again.obs_names.equals(found.obs_names)


def check_spatialdata(output: Path, labels: NDArray[np.integer]) -> Iterator[tuple[str, bool]]:
    """The folder by spatialdata: elements, their place, and the table's rows."""
    data = spatialdata.read_zarr(output / f"{NAME}.spatialdata.zarr")
    elements = {name for _, name, _ in data.gen_elements()}
    yield f"spatialdata reads {', '.join(sorted(elements))}", elements == {"image", "cells", "outlines", "table"}
    yield "all are placed in one coordinate system", data.coordinate_systems == ["global"]
    read = np.asarray(spatialdata.get_pyramid_levels(data["cells"], n=0))
    yield "labels are ours", np.array_equal(read, labels)
    image = spatialdata.get_pyramid_levels(data["image"], n=0)
    yield (
        f"the image is {image.shape}, and darker or brighter in objects",
        image.shape[1:] == labels.shape
        and (
            abs(float(np.asarray(image)[0][labels > 0].mean()) - float(np.asarray(image)[0][labels == 0].mean())) > 50
        ),
    )
    extents = [spatialdata.get_extent(data[name]) for name in ("image", "cells")]
    yield "image and labels have the same extent", extents[0] == extents[1]
    shapes = data["outlines"]
    areas = np.bincount(labels.ravel())
    yield "outlines go by the labels' numbers", (shapes.geometry.area.to_numpy() == areas[shapes.index]).all()
    table = data["table"]
    yield "the table annotates the labels", set(table.obs["element"]) == {"cells"}
    _, joined = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="cells", table_name="table", how="left"
    )
    yield "each of its rows has its label", joined.n_obs == table.n_obs == labels.max()
    values = spatialdata.get_values("area", element_name="cells", sdata=data, table_name="table")
    yield "its values are found by label", (values["area"].to_numpy() == areas[values.index]).all()
    box = spatialdata.bounding_box_query(
        data, axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[200, 200], target_coordinate_system="global"
    )
    yield "a part is cut out of all", 0 < box["table"].n_obs < table.n_obs and len(box["outlines"]) > 0
    data.write(output / "again.zarr")
    again = spatialdata.read_zarr(output / "again.zarr")
    yield "what spatialdata writes of it reads again", again["table"].n_obs == table.n_obs


if __name__ == "__main__":
    main()
