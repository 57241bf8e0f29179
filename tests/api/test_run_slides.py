"""Slides segmented from Python: the same bytes as step by step, resumed, locked, noted, in this process or on a Dask client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

import slidesam
from slidesam.run_slides import _list_allowed, as_settings
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.status import RunState, read_states
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
SETTINGS = {
    "segmenter": {"kind": "function", "target": "tests.support.faults:bright_pieces"},
    "blocks": {"block_shape": 64, "halo": 16},
    "run": {"retry_delay": 0},
}


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_numbered_slide(tmp_path / "s.tif")


def with_options(**options: object) -> dict:
    return {**SETTINGS, "segmenter": {**SETTINGS["segmenter"], "options": options}}


def store_files(output: Path) -> dict[Path, bytes]:
    store = output / "s.ome.zarr"
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def state(output: Path) -> RunState:
    (only,) = read_states(output)
    return only


def test_it_makes_the_bytes_that_the_steps_make(slide: Path, tmp_path: Path) -> None:
    result = slidesam.segment(slide, tmp_path / "a", SETTINGS, progress=False)
    dotted = {f"{section}.{name}": value for section, values in SETTINGS.items() for name, value in values.items()}
    labels = segment_serially(slide, tmp_path / "b", dotted)
    np.testing.assert_array_equal(result.labels[:, :], labels)
    assert result.run["objects"] == 9
    assert store_files(tmp_path / "a") == store_files(tmp_path / "b")


def test_it_tells_how_far_it_is(slide: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    slidesam.segment(slide, tmp_path / "out", SETTINGS, progress=lambda *words: told.append(words))
    assert [entry for entry in told if entry[0] == "segmenting blocks"] == [
        ("segmenting blocks", done, 9) for done in range(10)
    ]
    assert told[-3:] == [("painting labels", 9, 9), ("describing objects", 0, 1), ("describing objects", 1, 1)]


def test_a_finished_slide_is_returned_at_once(slide: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    told: list[object] = []
    first = slidesam.segment(slide, tmp_path / "out", with_options(log=str(log)), progress=False)
    again = slidesam.segment(
        slide, tmp_path / "out", with_options(log=str(log)), progress=lambda *words: told.append(words)
    )
    assert told == []
    assert again.run == first.run
    assert len(log.read_text().splitlines()) == 9
    assert state(tmp_path / "out").state.status == "finished"


def test_failed_blocks_are_tried_again_then_named_and_the_others_kept(slide: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    with pytest.raises(slidesam.BlockFailures, match="block 4: RuntimeError: made to fail on 5") as failure:
        slidesam.segment(slide, output, with_options(log=str(log), fail_on=5), progress=False)
    assert failure.value.block_ids == (4,)
    assert log.read_text().splitlines().count("5 failed") == 3
    assert (state(output).state.status, state(output).blocks_done) == ("failed", 8)
    with pytest.raises(slidesam.OutputError, match=r"s \(cells\) is failed. Call segment with the same settings again"):
        slidesam.open_result(output)


def test_a_block_that_fails_once_costs_nothing(slide: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = with_options(log=str(log), fail_on=5, times=1)
    assert slidesam.segment(slide, tmp_path / "out", settings, progress=False).run["objects"] == 9
    assert log.read_text().splitlines().count("5 failed") == 1


def test_an_interrupted_run_is_resumed(slide: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "segmenting blocks" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slidesam.segment(slide, output, with_options(log=str(log)), progress=interrupt)
    assert (state(output).state.status, state(output).blocks_done) == ("stopped", 4)
    result = slidesam.segment(slide, output, with_options(log=str(log)), progress=False)
    assert result.run["objects"] == 9
    assert len(log.read_text().splitlines()) == 9


def test_another_run_at_work_is_named_and_its_state_left(slide: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = output / ".slidesam" / "s" / "cells"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"status": "running"}))
    with locked(folder / "lock.json", "somebody", target="it"), pytest.raises(slidesam.LockedError, match="somebody"):
        slidesam.segment(slide, output, SETTINGS, progress=False)
    assert state(output).state.status == "running"


def test_a_file_at_fault_is_noted(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0 no tiff")
    with pytest.raises(slidesam.SlideError):
        slidesam.segment(tmp_path / "bad.tif", tmp_path / "out", SETTINGS, progress=False)
    assert state(tmp_path / "out").state.status == "failed"
    assert state(tmp_path / "out").state.file.size > 0


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    import dask
    from distributed import Client, LocalCluster

    with (
        # A loaded machine takes its time to start two workers.
        dask.config.set({"distributed.comm.timeouts.connect": "180s"}),
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, memory_limit=0, security=True
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.slow
def test_a_client_computes_the_same_bytes(slide: Path, client: object, tmp_path: Path) -> None:
    slidesam.segment(slide, tmp_path / "a", SETTINGS, client=client, progress=False)
    slidesam.segment(slide, tmp_path / "b", SETTINGS, progress=False)
    assert store_files(tmp_path / "a") == store_files(tmp_path / "b")
    noted = state(tmp_path / "a").state.cluster
    assert noted == {"kind": "attach", "address": client.scheduler.address}  # and not the key, which is in memory


@pytest.mark.slow
def test_a_client_s_failures_are_the_same(slide: Path, client: object, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(slidesam.BlockFailures) as failure:
        slidesam.segment(slide, tmp_path / "out", with_options(log=str(log), fail_on=5), client=client, progress=False)
    assert failure.value.block_ids == (4,)
    assert log.read_text().splitlines().count("5 failed") == 3


@pytest.mark.slow
def test_a_block_that_kills_its_worker_is_named(slide: Path, client: object, tmp_path: Path) -> None:
    settings = with_options(fail_on=5, deed="kill") | {"run": {"retry_delay": 0, "retries": 1}}
    with pytest.raises(slidesam.BlockFailures, match=r"block 4 .*ended its worker") as failure:
        slidesam.segment(slide, tmp_path / "out", settings, client=client, progress=False)
    assert failure.value.block_ids == (4,)
    assert state(tmp_path / "out").blocks_done == 8


def test_settings_are_given_in_any_form(tmp_path: Path) -> None:
    expected = slidesam.Settings.model_validate({"blocks": {"halo": 64}, "segmenter": {"kind": "watershed"}})
    (tmp_path / "settings.yaml").write_text("blocks: {halo: 64}\nsegmenter: {kind: watershed}\n")
    for given in (
        expected,
        {"blocks": {"halo": 64}, "segmenter": {"kind": "watershed"}},
        {"blocks.halo": 64, "segmenter.kind": "watershed"},
        tmp_path / "settings.yaml",
        str(tmp_path / "settings.yaml"),
    ):
        assert as_settings(given) == expected
    assert as_settings(None) == slidesam.Settings()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks.hallo": 64}, r"unknown setting blocks\.hallo: did you mean blocks\.halo"),
        ({"segmenter": {"kind": "magic"}}, r"segmenter\.kind"),
        ("nowhere.yaml", r"settings file nowhere\.yaml can't be read"),
    ],
)
def test_wrong_settings_are_named(settings: object, words: str) -> None:
    with pytest.raises(slidesam.SettingsError, match=words):
        as_settings(settings)  # type: ignore[arg-type]


def test_a_slide_is_inspected_without_an_output(slide: Path) -> None:
    facts = slidesam.inspect(slide, {"slide.mpp": 0.5})
    assert (facts.shape, facts.mpp, facts.dtype) == ((192, 192), (0.5, 0.5), "uint8")
    with pytest.raises(slidesam.SlideError, match=r"none\.tif"):
        slidesam.inspect(slide.with_name("none.tif"))


def test_it_is_inspected_as_it_is_segmented(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for number, level in enumerate((image, image[::2, ::2])):
            tiff.write(level, subfiletype=int(number > 0), tile=(64, 64), metadata=None)
    facts = slidesam.inspect(tmp_path / "a.tif")
    assert [level.is_averaged for level in facts.levels] == [True, False]
    assert facts == plan_run(tmp_path / "a.tif", tmp_path / "out", as_settings({"segmenter.kind": "watershed"})).slide


def test_one_block_is_tried_with_the_slide_s_parameters_and_kept_for_the_run(slide: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    settings = with_options(log=str(log))
    tried = slidesam.segment_block(slide, output, settings, block_id=4)
    assert (tried.block.block_id, tried.n_blocks, tried.labels.max()) == (4, 9, 1)
    assert tried.image.shape == (*tried.labels.shape, 1) == (96, 96, 1)
    assert slidesam.segment_block(slide, output, settings).block.block_id == 4
    assert log.read_text().splitlines() == ["5 done"]
    result = slidesam.segment(slide, output, settings, progress=False)
    assert log.read_text().splitlines().count("5 done") == 1
    np.testing.assert_array_equal(result.labels[tried.block.outer.slices] > 0, tried.labels > 0)


def test_a_block_that_fails_raises_its_own_error(slide: Path, tmp_path: Path) -> None:
    settings = with_options(fail_on=5) | {"run": {"retries": 0}}
    with pytest.raises(RuntimeError, match="made to fail on 5"):
        slidesam.segment_block(slide, tmp_path / "out", settings, block_id=4)


def test_block_labels_from_elsewhere_are_stitched(slide: Path) -> None:
    grid = slidesam.BlockGrid((20, 60), (20, 30), 10)
    whole = np.zeros(grid.shape, np.uint8)
    whole[4:9, 26:34] = whole[12:16, 50:58] = 1
    blocks = [ndimage.label(whole[block.outer.slices])[0] for block in grid]
    labels = slidesam.stitch(blocks, grid, {"stitch.min_iou": 0.5})
    np.testing.assert_array_equal(labels, ndimage.label(whole)[0])
    with pytest.raises(slidesam.SettingsError, match="1 label arrays for a grid of 2 blocks"):
        slidesam.stitch(blocks[:1], grid)


def test_only_a_mapping_allows_code_that_it_names() -> None:
    """`Settings` may be those of a result, and its file somebody else's."""
    names = {"segmenter.kind": "function", "segmenter.target": "hostile:find"}
    settings = as_settings(names)
    assert _list_allowed(names, settings) == ("hostile:find",)
    for from_elsewhere in (settings, "settings.yaml", Path("settings.yaml"), None):
        assert _list_allowed(from_elsewhere, settings) == ()
