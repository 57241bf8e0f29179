"""Power cuts at each stage, on a real ext4: the same call finishes with equal bytes, and what vouches for a result comes last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import slidesam
from tests.support.power_cut import Cuts, Disk, cut_after_each_rename, why_no_disk
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.result_bytes import Result, find_difference, read_result
from tests.support.slides import write_blobs
from tests.support.syncs import record_syncs

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
SETTINGS = {"segmenter": {"kind": "watershed"}, "blocks": {"block_shape": 128, "halo": 32}, "run": {"retry_delay": 0}}
# Of each stage a part of the paths that it renames; the power is cut after the last one, and after one in the middle.
STAGES = {
    "convert": ".image/convert-",
    "segment": "cells/segment-",
    "stitch": "cells/stitch-",
    "paint": "cells/paint-",
    "export": ".overlay.png",
    "end": ".run.json",
}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("slide") / "s.tif", 512)


@pytest.fixture(scope="module")
def expected(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    output = tmp_path_factory.mktemp("undisturbed")
    slidesam.segment(slide, output, SETTINGS, progress=False)
    return without_records(output)


@pytest.fixture(scope="module")
def cuts(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cuts]:
    folder = tmp_path_factory.mktemp("disk")
    if reason := why_no_disk(folder):
        pytest.skip(reason)
    disk = Disk(folder)
    taken = Cuts(disk, tmp_path_factory.mktemp("cuts"))
    try:
        disk.make()
        with cut_after_each_rename(taken, pytest.MonkeyPatch()):
            slidesam.segment(slide, disk.root / "out", SETTINGS, progress=False)
        yield taken
    finally:
        disk.unmount()


def without_records(output: Path) -> Result:
    result = read_result(output)
    return Result(result.digests)


@pytest.mark.parametrize("moment", ["last", "middle"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_call_finishes_what_a_power_cut_left(
    stage: str, moment: str, cuts: Cuts, slide: Path, expected: Result
) -> None:
    copies = [copy for name, copy in cuts.taken if STAGES[stage] in name]
    cuts.disk.mount(copies[-1 if moment == "last" else len(copies) // 2])
    output = cuts.disk.root / "out"
    for lock in output.glob(".slidesam/**/lock.json"):
        # This process lives on: after a power cut the lock counts by its age.
        lock.unlink()
    slidesam.segment(slide, output, SETTINGS, progress=False)
    assert find_difference(expected, without_records(output)) == ""


def test_the_result_is_on_the_disk_as_soon_as_it_is_vouched_for(cuts: Cuts, expected: Result) -> None:
    cuts.disk.mount(next(copy for name, copy in cuts.taken if name.endswith(".run.json")))
    found = without_records(cuts.disk.root / "out")
    # Files of the objects come after the labels, with a list of their own.
    labels = {path: digest for path, digest in expected.digests.items() if ".objects." not in str(path)}
    assert find_difference(Result(labels), found) == ""


def test_every_file_and_name_is_synced_before_the_record(slide: Path, tmp_path: Path) -> None:
    """On an ext4 one sync writes all names; on others each folder has to be synced by itself."""
    output = tmp_path / "out"
    with record_syncs(output, until=".run.json") as syncs:
        slidesam.segment(slide, output, SETTINGS, progress=False)
    assert syncs.unsynced_files == []
    assert syncs.unsynced_folders == []
    assert syncs.is_synced_after(output)
