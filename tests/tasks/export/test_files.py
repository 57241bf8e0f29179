"""Table and outlines of a real run: the same objects as in the label image, whatever the blocks, and whole or not at all."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from rasterio.features import rasterize

from slidesam.flows.slide import order
from slidesam.tasks.export import describe, index
from slidesam.tasks.export.files import FORMATS, FolderFormat, missing_formats
from slidesam.tasks.export.measures import measure_objects
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.layout import SPATIALDATA
from slidesam.tasks.run.records import Resolved
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import ExportFormat
from slidesam.tasks.store.verify import check_objects, take_back
from tests.support.damage import kind_of, snapshots_after_renames
from tests.support.qupath_schema import read_collection
from tests.support.serial import BACKWARDS, EXECUTOR, segment_serially
from tests.support.slides import write_blobs

SIDE = 768
SETTINGS = {
    "segmenter.kind": "watershed",
    "segmenter.diameter": 16,
    "blocks.halo": 64,
    "blocks.tissue": "off",
    "slide.mpp": 0.5,
    "output.formats": list(FORMATS),
}
# One file of each; of the folder one that isn't the store's.
FILES = [
    each.ending + ("/shapes/outlines/shapes.parquet" if isinstance(each, FolderFormat) else "")
    for each in FORMATS.values()
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tiles, in tasks of two: objects lie across blocks, tiles and tasks."""
    monkeypatch.setattr(index, "_TILE", (320, 320))
    monkeypatch.setattr(index, "_FEWEST_TILES", 2)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[Any]]:
    """A slide, segmented in blocks of 256 px beside it, and its labels."""
    folder = tmp_path_factory.mktemp("objects")
    slide = write_blobs(folder / "blobs.tif", SIDE)
    return slide, segment_serially(slide, folder / "out", SETTINGS | {"blocks.block_shape": 256})


@pytest.fixture
def run(result: tuple[Path, NDArray[Any]], tmp_path: Path) -> Run:
    """That run in a folder of the test's own, without files of the objects."""
    slide, _ = result
    shutil.copytree(slide.parent / "out", tmp_path / "out")
    return plan_run(slide, tmp_path / "out", make_settings(overrides=SETTINGS | {"blocks.block_shape": 256}))


def read_bytes(run: Run) -> dict[str, bytes]:
    """All files of the objects, those in folders too."""
    paths = [run.paths.export(each.ending) for each in FORMATS.values()]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {str(file.relative_to(run.output)): file.read_bytes() for file in files}


def remove_files(run: Run) -> None:
    for path in run.paths.exports:
        path.unlink(missing_ok=True)
    shutil.rmtree(run.paths.spatialdata, ignore_errors=True)


def read_features(run: Run) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = read_collection(gzip.decompress(run.paths.objects("geojson.gz").read_bytes()))[
        "features"
    ]
    return features


def test_a_row_is_what_the_whole_label_image_says(run: Run, result: tuple[Path, NDArray[Any]]) -> None:
    slide, labels = result
    assert missing_formats(run) == list(FORMATS)
    order.export_objects(run, EXECUTOR)
    assert missing_formats(run) == []
    table = pq.read_table(run.paths.objects("parquet"))
    count = int(labels.max())
    assert table["label"].to_pylist() == list(range(1, count + 1))
    expected = measure_objects(
        labels.astype(np.uint32), tifffile.imread(slide)[..., None], count, run.slide.channel_names
    )
    for name, column in expected.items():
        np.testing.assert_array_equal(table[name].to_numpy(), column, err_msg=name)
    np.testing.assert_array_equal(table["area_um2"].to_numpy(), expected["area"] * 0.25)
    blocks = np.zeros((SIDE, SIDE), np.int64)
    for block in run.grid:
        blocks[block.inner.slices] = block.block_id
    shown = [len(np.unique(blocks[labels == number])) for number in range(1, count + 1)]
    assert table["blocks"].to_pylist() == shown
    assert max(shown) > 1
    assert table.schema.field("area_um2").metadata[b"description"] == "Area in µm².".encode()


def test_outlines_are_the_labels(run: Run, result: tuple[Path, NDArray[Any]]) -> None:
    order.export_objects(run, EXECUTOR)
    _, labels = result
    features = read_features(run)
    assert len(features) == labels.max()
    assert len({feature["id"] for feature in features}) == len(features)
    table = pq.read_table(run.paths.objects("parquet")).to_pydict()
    shapes = []
    for feature in features:
        x, y = np.concatenate([ring for polygon in _polygons(feature) for ring in polygon[:1]]).min(axis=0)
        area = feature["properties"]["measurements"]["Area µm^2"]
        number = next(
            row for row in range(len(table["label"]))
            if (table["bbox-0"][row], table["bbox-1"][row]) == (y, x) and abs(table["area_um2"][row] - area) < 0.01
        )  # fmt: skip
        shapes.append((feature["geometry"], table["label"][number]))
    np.testing.assert_array_equal(rasterize(shapes, labels.shape, dtype=np.int32), labels)


def _polygons(feature: dict[str, Any]) -> list[Any]:
    geometry = feature["geometry"]
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


def test_blocks_order_and_lost_files_change_nothing(
    run: Run, result: tuple[Path, NDArray[Any]], tmp_path: Path
) -> None:
    order.export_objects(run, EXECUTOR)
    expected = read_bytes(run)
    remove_files(run)
    shutil.rmtree(index.object_folder(run).path)
    shutil.rmtree(run.paint_folder.path)
    order.export_objects(run, BACKWARDS)
    assert read_bytes(run) == expected
    # Blocks of another size give the same objects, in another order.
    slide, labels = result
    settings = SETTINGS | {"blocks.block_shape": 384}
    assert segment_serially(slide, tmp_path / "other", settings).max() == labels.max()
    other = plan_run(slide, tmp_path / "other", make_settings(overrides=settings))
    order.export_objects(other, EXECUTOR)
    assert read_rows(other) == read_rows(run)
    assert read_geometries(other) == read_geometries(run)


def read_rows(run: Run) -> list[dict[str, Any]]:
    """The rows by place, without what numbers and blocks say."""
    table = pq.read_table(run.paths.objects("parquet")).drop_columns(["label", "block", "blocks"])
    return sorted(table.to_pylist(), key=lambda row: (row["centroid-0"], row["centroid-1"]))


def read_geometries(run: Run) -> list[str]:
    return sorted(json.dumps(feature["geometry"]) for feature in read_features(run))


def test_a_large_object_is_described_from_a_window_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order.export_objects(run, EXECUTOR)
    expected = read_features(run), pq.read_table(run.paths.objects("parquet"))
    remove_files(run)
    shutil.rmtree(index.object_folder(run).path)
    monkeypatch.setattr(describe, "_LONGEST_SHARED", 20)
    order.export_objects(run, EXECUTOR)
    by_id = (sorted(features, key=lambda feature: feature["id"]) for features in (expected[0], read_features(run)))
    assert next(by_id) == next(by_id)
    assert pq.read_table(run.paths.objects("parquet")).equals(expected[1])


@pytest.mark.parametrize("ending", FILES)
def test_a_damaged_file_is_found_and_made_again(run: Run, ending: str) -> None:
    order.export_objects(run, EXECUTOR)
    expected = read_bytes(run)
    path = run.paths.export(ending)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    finding = check_objects(run.paths)
    assert [damage.path for damage in finding.damages] == [path]
    take_back(finding)
    assert len(missing_formats(run)) == 1
    assert run.paths.provenance.exists()
    order.export_objects(run, EXECUTOR)
    assert read_bytes(run) == expected
    assert not check_objects(run.paths).damages


@pytest.mark.parametrize(("kind", "ending"), [("table", "objects.parquet"), ("report", "report.html")])
def test_a_file_that_cannot_be_written_costs_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
) -> None:
    run.paths.export(ending).mkdir()
    warnings: list[str] = []
    monkeypatch.setattr(type(EXECUTOR), "warn", lambda _, message: warnings.append(message))
    order.export_objects(run, EXECUTOR)
    assert missing_formats(run) == [kind]
    assert all(run.paths.export(other).is_file() for other in FILES if not other.startswith(ending))
    (warning,) = warnings
    assert f"the labels are finished, but {kind} of its objects can't be written" in warning
    assert not list(run.output.glob(".*partial"))


def test_nothing_found_is_an_empty_table(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "blank.tif", np.full((256, 256), 9, np.uint8), tile=(64, 64))
    segment_serially(tmp_path / "blank.tif", tmp_path / "out", SETTINGS | {"blocks.block_shape": 256})
    run = plan_run(
        tmp_path / "blank.tif", tmp_path / "out", make_settings(overrides=SETTINGS | {"blocks.block_shape": 256})
    )
    order.export_objects(run, EXECUTOR)
    assert read_features(run) == []
    table = pq.read_table(run.paths.objects("parquet"))
    assert (table.num_rows, table.column_names[:2]) == (0, ["slide", "label"])
    assert zarr.open_group(run.store, mode="r")["labels/cells/0"].shape[-1] == 256


@pytest.mark.parametrize("part", ["described", "features", "polygons", "parts", "index"])
def test_damage_to_what_they_are_made_from_is_healed(run: Run, part: str) -> None:
    run = with_output(run, formats=("table", "outlines", "geoparquet"))
    order.export_objects(run, EXECUTOR)
    expected = read_bytes(run)
    folder = index.object_folder(run)
    shutil.rmtree(run.paint_folder.path / "measures")
    shutil.rmtree(folder.path)
    remove_files(run)
    order.export_objects(run, EXECUTOR)
    remove_files(run)
    if part in ("index", "parts"):
        for kind in ("described", "features", "polygons"):
            shutil.rmtree(folder.path / kind)
    if part == "parts":
        folder.index.unlink()
    for path in [folder.index] if part == "index" else sorted((folder.path / part).glob("*"))[1:2]:
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)
    order.export_objects(run, EXECUTOR)
    assert read_bytes(run) == expected


def test_a_kill_at_any_moment_costs_no_byte(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of rows and both forms of outlines; a file and a folder.
    run = with_output(run, formats=("outlines", "spatialdata"))
    shutil.rmtree(run.paint_folder.path / "measures")
    # What is renamed within a half-written folder has no name yet.
    with snapshots_after_renames(
        run.output, tmp_path, lambda name: "objects" in name or name.endswith(SPATIALDATA), monkeypatch
    ) as moments:
        order.export_objects(run, EXECUTOR)
    expected = read_bytes(run)
    # Of parts of objects in blocks, the index, rows, both forms of outlines, a file, a folder and their list the last each.
    last = {kind_of(Path(moment.moment)): moment for moment in moments}
    assert len(last) == 8
    for moment in last.values():
        shutil.rmtree(run.output)
        shutil.copytree(moment.folder, run.output)
        order.export_objects(run, EXECUTOR)
        assert read_bytes(run) == expected, moment.moment


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_or_a_kill_in_the_middle_of_a_file_costs_no_byte(run: Run, kind: ExportFormat) -> None:
    order.export_objects(run, EXECUTOR)
    expected = read_bytes(run)
    remove_files(run)
    half = len(expected[str(run.paths.export(FILES[list(FORMATS).index(kind)]).relative_to(run.output))]) // 2
    asking = with_output(run, formats=(kind,))
    assert in_own_process(export_on_full_disk, asking, half) == 0
    assert missing_formats(asking) == [kind]
    assert in_own_process(export_and_die, asking, half) == -signal.SIGXFSZ
    final = run.paths.export(FORMATS[kind].ending)
    assert not final.exists()
    assert list(run.output.glob(f".{final.name}.*.partial"))
    segmented = [path.stat().st_mtime_ns for path in run.segment_folder.path.rglob("*")]
    order.export_objects(run, EXECUTOR)
    assert read_bytes(run) == expected
    assert [path.stat().st_mtime_ns for path in run.segment_folder.path.rglob("*")] == segmented


def in_own_process(call: Callable[[Run, int], None], run: Run, n_bytes: int) -> int | None:
    """The exit code of a process forked from one that has imported this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=call, args=(run, n_bytes))
    process.start()
    process.join()
    return process.exitcode


def export_on_full_disk(run: Run, n_bytes: int) -> None:
    """Files can't be larger than this: it is said, and nothing half-written stays."""
    index._TILE, index._FEWEST_TILES = (320, 320), 2
    warnings: list[str] = []
    EXECUTOR.warn = warnings.append  # type: ignore[method-assign]
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    order.export_objects(run, EXECUTOR)
    assert len(warnings) == 1
    assert "(File too large)" in warnings[0], warnings
    assert not list(run.output.glob(".*partial"))


def export_and_die(run: Run, n_bytes: int) -> None:
    """End without a word, as by `kill -9`, at the byte of a file that is beyond a number."""
    index._TILE, index._FEWEST_TILES = (320, 320), 2
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    order.export_objects(run, EXECUTOR)


def with_output(run: Run, **changes: object) -> Run:
    """The same run with other settings of its output."""
    output = run.settings.output.model_copy(update=changes)
    return Run(**dict(run) | {"settings": run.settings.model_copy(update={"output": output})})


def test_the_table_says_what_seams_did_until_that_is_cleaned_up(run: Run) -> None:
    order.export_objects(run, EXECUTOR)
    table = pq.read_table(run.paths.objects("parquet"))
    totals = Resolved.read(run.stitch_folder.resolved).seams.totals
    assert totals["dropped"] == 0
    assert sum(table["disputed"].to_pylist()) == totals["objects"] - totals["matched"]
    relabelling = load_arrays(run.stitch_folder.numbering)["relabelling"]
    counts = np.bincount(-relabelling[relabelling < 0], minlength=len(table) + 1)[1:]
    assert table["fragments"].to_pylist() == np.maximum(counts, 1).tolist()
    at_seams = np.array(table["blocks"].to_pylist()) > 1
    assert np.array(table["disputed"].to_pylist())[~at_seams].sum() == 0
    for folder in (run.segment_folder, run.stitch_folder, run.paint_folder, index.object_folder(run)):
        shutil.rmtree(folder.path)
    run.paths.objects("parquet").unlink()
    order.export_objects(run, EXECUTOR)
    again = pq.read_table(run.paths.objects("parquet"))
    assert again.drop(["fragments", "disputed"]).equals(table.drop(["fragments", "disputed"]))
    assert again["disputed"].null_count == again["fragments"].null_count == len(table)
    assert again.schema.equals(table.schema)
