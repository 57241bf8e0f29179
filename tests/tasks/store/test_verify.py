"""Damage to finished results, and to metadata of unfinished ones: it is found by name, and exactly that is made again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import slidesam
from slidesam.flows.slide import order
from slidesam.tasks import steps
from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.folder.demo import demo_image
from slidesam.tasks.folder.verify import repair_findings, verify_folder
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.zarr.metadata import METADATA_FILES
from slidesam.tasks.store.readers import open_pixels
from tests.support.serial import EXECUTOR, write_image_serially

SETTINGS = {
    "segmenter.kind": "watershed",
    "segmenter.diameter": 10,
    "blocks.block_shape": 256,
    "blocks.halo": 16,
    "slide.mpp": 0.5,
    "image.convert": "always",
}
FORMATS = ["0.5", "0.4"]


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    """Make small slides have several conversion tiles, groups of blocks and upper levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_plan, "SHARD_SIDE", 512)
        patch.setattr(image_plan, "_GROUP_SIDE", 512)
        patch.setattr(image_plan, "_SMALLEST_LEVEL", 200)
        yield


@pytest.fixture(scope="module", params=FORMATS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("slide")
    tifffile.imwrite(folder / "s.tif", demo_image(700), tile=(256, 256), photometric="rgb")
    settings = SETTINGS | {"image.ome_zarr": request.param}
    slidesam.segment(folder / "s.tif", folder / "out", settings, progress=False)
    return plan_run(folder / "s.tif", folder / "out", make_settings(overrides=settings))


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A finished run of the test's own."""
    shutil.copytree(finished.output, tmp_path / "out")
    return plan_run(finished.slide.path, tmp_path / "out", finished.settings)


def read_results(output: Path) -> dict[str, bytes]:
    """Read all results, without what has times in it."""
    paths = [path for path in output.rglob("*") if path.is_file() and ".slidesam" not in path.parts]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if not path.name.endswith(".run.json")}


def list_results(output: Path) -> list[Path]:
    return sorted(path for path in output.rglob("*") if path.is_file() and ".slidesam" not in path.parts)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def segment(run: Run) -> list[str]:
    """Give the same command again; return what it says of damage."""
    attempt = slidesam.attempts.Attempt(run.slide.path, run.output, run.settings, None, reporter := Told())
    attempt.finish()
    return [message for message in reporter.messages if "made again" in message]


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def inform(self, message: str) -> None:
        self.messages.append(message)

    def begin(self, stage: str, total: int, n_done: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def end(self) -> None: ...


def test_one_flipped_bit_in_any_file_of_a_result_is_found_and_named(run: Run) -> None:
    assert not [finding for finding in verify_folder(run.output, "whole") if finding.damages]
    paths = list_results(run.output)
    assert len(paths) > 20
    for path in paths:
        flip(path)
        damages = [damage for finding in verify_folder(run.output, "whole") for damage in finding.damages]
        flip(path)
        labels_list = path.parent.name == "labels"
        assert (path.parent if labels_list else path) in {damage.path for damage in damages}, path
        assert len(damages) <= 2
    assert not [finding for finding in verify_folder(run.output, "whole") if finding.damages]


@pytest.mark.parametrize("kind", ["metadata", "pixels", "lists", "record"])
def test_what_is_damaged_is_made_again_and_nothing_else(kind: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_results(run.output)
    paths = list_results(run.output)
    chosen = {
        "metadata": [path for path in paths if path.name in METADATA_FILES],
        # A tile of the image and a batch of blocks, an upper level of each, and the picture.
        "pixels": [
            run.store / tail if run.settings.image.ome_zarr == "0.5" else run.store / tail.replace("c/", "")
            for tail in ("0/c/0/0/0/0/1", "2/c/0/0/0/0/0", "labels/cells/0/c/0/0/0/1/0", "labels/cells/2/c/0/0/0/0/0")
        ]
        + [run.paths.overlay],
        "lists": [run.paths.file_list, run.paths.image.file_list],
        "record": [run.paths.provenance],
    }[kind]
    for path in chosen:
        flip(path)
    repair_findings([finding for finding in verify_folder(run.output, "whole") if finding.damages])
    monkeypatch.setattr(steps, "segment_missing", refuse)
    tiles, write_tile = [], steps.convert.write_tile
    monkeypatch.setattr(
        steps.convert, "write_tile", lambda run, reader, *tile: tiles.append(tile) or write_tile(run, reader, *tile)
    )
    segment(run)
    assert read_results(run.output) == expected
    assert not [finding for finding in verify_folder(run.output, "whole") if finding.damages]
    if kind != "lists":
        # A tile of level 0, and one of a level above.
        assert len(tiles) == (2 if kind == "pixels" else 0)


def refuse(*arguments: object) -> None:
    raise AssertionError("a block was segmented again")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"a": "\xff"}', b"[]"])
def test_damaged_metadata_of_a_finished_result_is_written_again_by_the_same_command(damage: bytes, run: Run) -> None:
    expected = read_results(run.output)
    for path in list_results(run.output):
        if path.name in METADATA_FILES:
            path.write_bytes(damage)
    assert read_finished(run) is None
    with pytest.raises(OutputError, match="verify"):
        slidesam.open_result(run.output)
    assert segment(run)
    assert read_results(run.output) == expected


def test_files_that_are_gone_or_cut_are_made_again_by_the_same_command(run: Run) -> None:
    expected = read_results(run.output)
    shards = [path for path in list_results(run.output) if path.name.isdigit()]
    shards[0].unlink()
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    assert len(segment(run)) == 2
    assert read_results(run.output) == expected


def test_damaged_metadata_of_an_unfinished_result_stops_nothing(finished: Run, tmp_path: Path) -> None:
    run = plan_run(finished.slide.path, tmp_path / "out", finished.settings)
    write_image_serially(run)
    order.segment_missing_blocks(run, EXECUTOR)
    for batch in order.block_batches(run):
        steps.match_blocks.fn(run, batch)
    steps.resolve_objects.fn(run)
    for batch in order.block_batches(run):
        steps.paint_blocks.fn(run, batch)
    for path in list_results(run.output):
        if path.name in METADATA_FILES:
            path.write_bytes(b"")
    segment(run)
    assert {name: data for name, data in read_results(run.output).items() if "/labels/" in name} == {
        name: data for name, data in read_results(finished.output).items() if "/labels/" in name
    }


def test_damaged_metadata_of_a_store_that_is_being_converted_stops_nothing(finished: Run, tmp_path: Path) -> None:
    run = plan_run(finished.slide.path, tmp_path / "out", finished.settings)
    steps.ready_image.fn(run)
    steps.write_tiles.fn(run, 0, [0])
    for path in list_results(run.output):
        if path.name in METADATA_FILES:
            path.write_bytes(b"")
    assert "its image is made again" in segment(run)[0]
    assert not [finding for finding in verify_folder(run.output, "whole") if finding.damages]


def test_a_damaged_shard_is_no_pixels_for_whoever_reads_it(run: Run) -> None:
    if run.settings.image.ome_zarr == "0.4":
        shutil.rmtree(run.store / "0" / "0")
        with pytest.raises(DamagedError, match="is gone: run the same command again"):
            open_pixels(run).read(Region(0, 0, 100, 100))
        return
    shard = run.store / "0" / "c" / "0" / "0" / "0" / "0" / "0"
    zarr.open_array(run.store / "0", mode="r")[0, 0, 0, :100, :100]
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    for reason in ("is damaged and was removed", "is gone"):
        with pytest.raises(DamagedError, match=f"0/c/0/0/0/0/0 {reason}: run the same command again"):
            open_pixels(run).read(Region(0, 0, 512, 512))
    assert segment(run)


def test_each_kind_of_array_has_checksums(run: Run) -> None:
    levels = [*run.store.glob("[0-9]"), *run.paths.label_image.glob("[0-9]")]
    assert len(levels) == 6
    if run.settings.image.ome_zarr == "0.5":
        for level in levels:
            codecs = zarr.open_array(level, mode="r").metadata.to_dict()["codecs"][0]["configuration"]["codecs"]
            assert codecs[-1]["name"] == "crc32c", level


def test_results_of_a_version_without_lists_are_opened_and_called_so(run: Run) -> None:
    record = read_finished(run)
    record.model_copy(update={"file_list": None}).write(run.paths.provenance)
    run.paths.file_list.unlink()
    run.paths.image.file_list.unlink()
    for path in run.paths.exports:
        path.unlink(missing_ok=True)
    findings = list(verify_folder(run.output, "whole"))
    assert [(finding.is_listed, finding.damages) for finding in findings] == [(False, ())] * 2
    assert slidesam.open_result(run.output).labels[:, :].any()


def test_verifying_after_the_export_finds_what_was_written_wrongly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.model_copy(
        update={
            "settings": run.settings.model_copy(update={"run": run.settings.run.model_copy(update={"verify": "whole"})})
        }
    )
    assert steps.verify_result.fn(whole)["files"] > 10
    flip(run.paths.overlay)
    with pytest.raises(DamagedError, match=r"overlay\.png differs from its checksum: run the same command again"):
        steps.verify_result.fn(whole)
    assert not run.paths.provenance.exists()
    segment(run)
    np.testing.assert_array_equal(steps.verify_result.fn(whole)["files"] > 10, True)


def test_a_shard_that_is_damaged_while_blocks_are_segmented_is_made_again_by_the_same_command(
    finished: Run, tmp_path: Path
) -> None:
    if finished.settings.image.ome_zarr == "0.4":
        return  # nothing in a chunk says that it is damaged
    run = plan_run(finished.slide.path, tmp_path / "out", finished.settings)
    write_image_serially(run)
    flip(run.store / "0" / "c" / "0" / "0" / "0" / "1" / "0")
    reporter = Told()
    slidesam.attempts.Attempt(run.slide.path, run.output, run.settings, None, reporter).finish()
    assert any("0/c/0/0/0/1/0 is damaged and was removed" in message for message in reporter.messages)
    expected = read_results(finished.output)
    assert {name.replace("/labels/", "") for name in read_results(run.output)} == {
        name.replace("/labels/", "") for name in expected
    }
    assert all(read_results(run.output)[name] == data for name, data in expected.items() if "/labels/cells/" in name)
