"""The report on a slide: whole by itself, with the table's own numbers, for slides of any kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tifffile

from slidesam.flows.slide import order
from slidesam.tasks.export import report_file
from slidesam.tasks.export.columns import describe_columns
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.export.rows import read_rows
from slidesam.tasks.pages import slide_page
from slidesam.tasks.pages.block_times import read_block_times, write_block_times
from slidesam.tasks.pages.crops import choose_places_to_show
from slidesam.tasks.pages.distribution import describe_values
from slidesam.tasks.pages.html import write_number
from slidesam.tasks.pages.object_values import ObjectValues, find_places, group_areas
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment import loop
from slidesam.tasks.settings.parse import make_settings
from tests.support.pages import Page, read_page
from tests.support.serial import EXECUTOR, segment_serially
from tests.support.slides import write_blobs

HOSTILE = """<img src=x onerror=alert(1)>&"'</style><script>alert(2)</script>"""
SETTINGS: dict[str, Any] = {
    "segmenter.kind": "watershed", "segmenter.diameter": 16, "blocks.block_shape": 128, "blocks.halo": 48,
    "blocks.tissue": "off", "output.formats": ["table", "report"], "run.verify": "none",
}  # fmt: skip


def make(slide: Path, output: Path, **changes: Any) -> tuple[Run, Page]:
    """Segments a slide; its run, and its report."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    segment_serially(slide, output, settings)
    run = plan_run(slide, output, make_settings(overrides=settings))
    order.export_objects(run, EXECUTOR)
    return run, read_page(run.paths.export("report.html").read_text())


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Page]:
    folder = tmp_path_factory.mktemp("report")
    return make(write_blobs(folder / "blobs.tif", 512), folder / "out", slide__mpp=0.5)


def values_of(run: Run) -> ObjectValues:
    return ObjectValues(tuple(describe_columns(run)), lambda names: read_rows(run, names))


def test_numbers_are_those_of_the_table(blobs: tuple[Run, Page]) -> None:
    run, page = blobs
    table = pq.read_table(run.paths.objects("parquet"))
    record = Provenance.read(run.paths.provenance)
    assert record is not None
    assert record.seams is not None
    first, median, third = np.percentile(table["area_um2"].to_numpy(), (25, 50, 75))
    for words in (
        f"blobs: {table.num_rows:,} cells",
        f"{write_number(median)} median area, µm²; half lie between {write_number(first)} and {write_number(third)}",
        f"{write_number(table.num_rows / (512 * 512 * 0.25 / 1e6))} per mm² of segmented blocks",
        f"of {record.seams.totals['objects']:,} objects at seams blocks agree on",
        f"median {write_number(float(np.median(table['solidity'])))} , quartiles",
        "blocks segmented 16 of 16",
        f"segmenter {record.segmenter.identity}",
        "slidesam view blobs.ome.zarr",
    ):
        assert words in page.text
    # Nine distributions at most, and each counts every object.
    mean = next(name for name in table.column_names if name.startswith("intensity_mean"))
    for name in ("area_um2", "circularity", mean):
        found = describe_values(values_of(run).read_whole(name))
        assert found is not None
        assert found.bins.sum() + found.beyond + found.missing == table.num_rows
    times = read_block_times(run)
    assert times.objects.sum() >= table.num_rows
    assert np.isfinite(times.seconds).all()


def test_places_are_found_by_the_table_too(blobs: tuple[Run, Page]) -> None:
    """The crop with most objects, and where most lie in several blocks, against counts made in another way."""
    run, page = blobs
    table = pq.read_table(run.paths.objects("parquet"))
    places = find_places(values_of(run), run.grid, 100)
    assert places.density.counts.sum() == places.windows.counts.sum() == table.num_rows
    y, x = (table[f"centroid-{axis}"].to_numpy() for axis in (0, 1))
    expected, *_ = np.histogram2d(y + 0.5, x + 0.5, bins=[np.arange(0, 601, 100)] * 2)
    np.testing.assert_array_equal(places.density.counts, expected)
    np.testing.assert_allclose(places.density.find_densities()[5, 5], expected[5, 5] / 12**2)
    is_across = table["blocks"].to_numpy() > 1
    meeting = np.array([128, 256, 384])
    nearest = [meeting[np.abs(at[is_across, None] - meeting).argmin(axis=1)] for at in (y, x)]
    points, counts = np.unique(np.stack(nearest, axis=1), axis=0, return_counts=True)
    chosen = choose_places_to_show(places.windows, places.seams, places.disputed)
    busiest = places.seams.find_busiest()
    assert busiest == tuple(points[counts.argmax()])
    assert chosen[0].rule == "most objects"
    assert tuple(np.clip(np.array(busiest) - 192, 0, 128)) in {crop.region[:2] for crop in chosen}
    assert page.text.count("in sight") == len(chosen)


def test_the_same_run_has_the_same_report(blobs: tuple[Run, Page]) -> None:
    run, _ = blobs
    path = run.paths.export("report.html")
    before = path.read_bytes()
    path.unlink()
    order.export_objects(run, EXECUTOR)
    assert path.read_bytes() == before
    assert len(before) < 1_000_000


def test_it_says_what_failed_in_between(blobs: tuple[Run, Page], tmp_path: Path) -> None:
    run, _ = blobs
    shutil.copytree(run.output, tmp_path / "out")
    copied = run.model_copy(update={"output": tmp_path / "out"})
    copied.segment_folder.block(3).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "begin_outer", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                loop.segment_missing(copied, [3], "attempt")
    loop.segment_missing(copied, [3], "attempt")
    times = read_block_times(copied)
    assert (times.failed[3], times.failed.sum(), times.lost.sum()) == (2, 2, 0)
    words = Page(f"<!doctype html>{write_block_times(times, run.grid, run.slide.shape)}").text
    assert "tried again 1 block: 2 failures, 0 workers ended" in words
    # Failures of another attempt aren't held against it.
    copied.segment_folder.block(3).unlink()
    loop.segment_missing(copied, [3], "other")
    assert read_block_times(copied).failed.sum() == 0


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    slide = write_blobs(tmp_path / "s.tif", 256)
    _, page = make(slide, tmp_path / "out", slide__name=HOSTILE.replace("/", "_"))
    assert HOSTILE.replace("/", "_") in page.text
    assert "script" not in page.tags


def test_an_empty_slide_has_a_report(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "blank.tif", np.full((256, 256), 9, np.uint8), tile=(64, 64))
    _, page = make(tmp_path / "blank.tif", tmp_path / "out")
    assert "blank: 0 cells" in page.text
    assert "No object." in page.text
    assert "the slide's middle, as no object was found: 0 in sight" in page.text
    assert "pixel size unknown" in page.text


def test_one_block_and_unknown_pixel_size(tmp_path: Path) -> None:
    run, page = make(write_blobs(tmp_path / "s.tif", 256), tmp_path / "out", blocks__block_shape=256)
    table = pq.read_table(run.paths.objects("parquet"))
    assert "The slide is one block, so it has none." in page.text
    assert f"{write_number(float(np.median(table['area'])))} median area, px²" in page.text
    assert "per million pixels of segmented blocks" in page.text
    assert "µm²" not in page.text


def test_regions_are_counted_as_in_the_table(tmp_path: Path) -> None:
    slide = write_blobs(tmp_path / "s.tif", 512)
    run, page = make(slide, tmp_path / "out", blocks__region="20, 30, 200, 100 px", slide__mpp=0.5)
    table = pq.read_table(run.paths.objects("parquet"))
    inside = table.filter(pc.equal(table["region"], "region"))
    assert 0 < inside.num_rows < table.num_rows
    share = f"{100 * inside.num_rows / table.num_rows:.3g} %"
    median = write_number(float(np.median(inside["area_um2"])))
    density = write_number(inside.num_rows / (200 * 100 * 0.25 / 1e6))
    assert f"region {inside.num_rows} {share} {density} {median}" in page.text
    assert f"none {table.num_rows - inside.num_rows} " in page.text
    assert "grey where outside of the regions or without tissue" in page.text
    assert "of segmented blocks" not in page.text


def test_classes_are_told_apart_across_pieces(blobs: tuple[Run, Page]) -> None:
    run, _ = blobs
    pieces = [
        {"label": [1, 2], "region": ["", "<r>"], "class": ["b", "a"], "area": [1.0, 2.0]},
        {"label": [3, 4], "region": ["<r>", "<r>"], "class": ["b", "b"], "area": [4.0, 8.0]},
    ]
    values = ObjectValues(
        ("label", "region", "class", "area"),
        lambda names: ({name: np.array(piece[name]) for name in names} for piece in pieces),
    )
    areas = group_areas(values, ["class"], "area")
    assert {name: found.tolist() for name, found in areas.items()} == {("a",): [2.0], ("b",): [1.0, 4.0, 8.0]}
    record = Provenance.read(run.paths.provenance)
    assert record is not None
    text = Page("<!doctype html>" + "".join(slide_page._write_groups(run, record, values))).text
    assert "Classes class objects share per mm² median area, µm² quartiles a 1 " in text
    assert "<r> a 1 " in text
    assert "<r> b 2 " in text
    only_classes = ObjectValues(("label", "class", "area"), values.read)
    text = Page("<!doctype html>" + "".join(slide_page._write_groups(run, record, only_classes))).text
    assert f"b 3 {300 / record.objects:.3g} % {write_number(3 / (512 * 512 * 0.25 / 1e6))} 4 2.5 to 6" in text


def test_many_channels_are_counted_not_all_drawn(tmp_path: Path) -> None:
    planes = np.stack([tifffile.imread(write_blobs(tmp_path / f"{seed}.tif", 256, seed)) for seed in range(9)])
    tifffile.imwrite(
        tmp_path / "nine.ome.tif", planes, photometric="minisblack", tile=(64, 64),
        metadata={"axes": "CYX", "Channel": {"Name": [f"<C{number}>" for number in range(9)]}},
    )  # fmt: skip
    _, page = make(tmp_path / "nine.ome.tif", tmp_path / "out", blocks__block_shape=256, slide__channels=list(range(9)))
    assert "3 more channels are in the table." in page.text
    assert "Mean <C5>" in page.text
    assert page.tags["svg"] == 5 + 6


def test_a_slide_that_is_gone_costs_the_report_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, output = write_blobs(tmp_path / "s.tif", 256), tmp_path / "out"
    run, _ = make(slide, output, image__convert="never", output__formats=["report", "table"])
    for path in (run.paths.export("report.html"), run.paths.objects("parquet")):
        path.unlink()
    slide.rename(tmp_path / "moved.tif")
    warnings: list[str] = []
    monkeypatch.setattr(type(EXECUTOR), "warn", lambda _, message: warnings.append(message))
    order.export_objects(run, EXECUTOR)
    assert missing_formats(run) == ["report"]
    (warning,) = warnings
    assert "the labels are finished, but report of its objects can't be written" in warning
    (tmp_path / "moved.tif").rename(slide)
    order.export_objects(run, EXECUTOR)
    assert missing_formats(run) == []


def test_results_of_blocks_may_be_cleaned(blobs: tuple[Run, Page], tmp_path: Path) -> None:
    run, _ = blobs
    shutil.copytree(run.output, tmp_path / "out")
    copied = run.model_copy(update={"output": tmp_path / "out"})
    shutil.rmtree(copied.segment_folder.path)
    with (tmp_path / "page.html").open("wb") as file:
        report_file.write_report(copied, file)
    page = read_page((tmp_path / "page.html").read_text())
    assert "The times of single blocks are gone" in page.text
