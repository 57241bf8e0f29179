"""One flipped bit in each kind of file, during a run and after its end: healed or named, never silently other bytes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import slidesam
from tests.support.damage import GOOD, Runner, Snapshot, judge, segment_here, snapshots_after_renames
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.result_bytes import Result, find_difference, find_volatile_keys, read_result
from tests.support.slides import write_blobs

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
SETTINGS = {
    "segmenter": {"kind": "watershed"},
    "blocks": {"block_shape": 128, "halo": 32},
    "run": {"retries": 1, "retry_delay": 0},
}
KINDS = 12
"""So many kinds of files a run leaves at least: fewer would say that the test doesn't see them."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("slide") / "s.tif", 256)


@pytest.fixture(scope="module")
def snapshots(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    folder = tmp_path_factory.mktemp("snapshots")
    output = folder / "out"
    with snapshots_after_renames(output, folder / "taken", lambda _: True, pytest.MonkeyPatch()) as taken:
        slidesam.segment(slide, output, SETTINGS, progress=False)
    return [*taken, Snapshot("end", output)]


@pytest.fixture(scope="module")
def expected(slide: Path, snapshots: list[Snapshot], tmp_path_factory: pytest.TempPathFactory) -> Result:
    again = tmp_path_factory.mktemp("again")
    slidesam.segment(slide, again, SETTINGS, progress=False)
    first, second = read_result(snapshots[-1].folder), read_result(again)
    first.ignore(find_volatile_keys(first, second))
    assert find_difference(first, second) == ""
    return first


@pytest.fixture
def run(slide: Path) -> Runner:
    return segment_here(slide, SETTINGS)


@pytest.mark.parametrize("is_finished", [False, True], ids=["under way", "finished"])
def test_a_flipped_bit_is_healed_or_named(
    is_finished: bool, snapshots: list[Snapshot], expected: Result, run: Runner, tmp_path: Path
) -> None:
    places: dict[str, tuple[Snapshot, Path]] = {}
    for snapshot in snapshots:
        for kind, paths in snapshot.kinds().items():
            if snapshot.is_finished == is_finished:
                # Soon after a file is written it is still needed.
                places.setdefault(kind, (snapshot, paths[0]))
    assert len(places) >= KINDS
    chance = random.Random(0)
    outcomes = [
        judge(snapshot, path, "flip", chance, tmp_path / "out", run, expected) for snapshot, path in places.values()
    ]
    assert [words for outcome, *words in outcomes if outcome not in GOOD] == []


@pytest.mark.parametrize("is_last", [False, True], ids=["first", "last"])
def test_a_root_whose_owner_is_damaged_is_healed_while_a_run_is_under_way(
    is_last: bool, slide: Path, snapshots: list[Snapshot], expected: Result, tmp_path: Path
) -> None:
    with_root = [snapshot for snapshot in snapshots if (snapshot.folder / "s.ome.zarr/zarr.json").exists()]
    under_way = [snapshot for snapshot in with_root if not snapshot.is_finished]
    shutil.copytree(under_way[-is_last].folder, tmp_path / "out")
    root = tmp_path / "out/s.ome.zarr/zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"slidesam"', b'"slidesal"'))
    slidesam.segment(slide, tmp_path / "out", SETTINGS, progress=False)
    assert find_difference(expected, read_result(tmp_path / "out")) == ""
