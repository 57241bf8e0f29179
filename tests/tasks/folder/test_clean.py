"""What `clean` removes, and what it must never: results, runs that aren't finished, and what somebody is at work on."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import zarr

from slidesam.tasks.errors import OutputError
from slidesam.tasks.folder import clean as clean_module
from slidesam.tasks.folder.clean import clean_folder, size_of
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.owner import Owner
from slidesam.tasks.run.status import RunState, read_states, record_finished, write_state
from slidesam.tasks.settings.parse import make_settings
from tests.support.records import finished_record
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

NOW = datetime(2030, 1, 15, 12, tzinfo=UTC)
DAY = 86400.0
STAGES = ["paint-3", "segment-1", "stitch-2"]


def made(output: Path, slide: str = "s", label: str = "cells", *, days: float = 30, keep: str | None = "7d") -> Path:
    """The folder of a run that finished some days ago; its three stages are 60 bytes in 6 files."""
    work = output / ".slidesam" / slide / label
    for stage in STAGES:
        (work / stage / "blocks").mkdir(parents=True)
        (work / stage / "blocks" / "0.arrays").write_bytes(b"x" * 10)
        (work / stage / "data").write_bytes(b"x" * 10)
    write_state(output, slide, label, "finished", blocks=9, segment_folder="segment-1", objects=5)
    settings = {"run": {} if keep is None else {"keep_work": keep}}
    finished = (NOW - timedelta(days=days)).isoformat(timespec="seconds")
    finished_record(finished=finished, settings=settings).write(output / f"{slide}.{label}.run.json")
    return work


def standing(output: Path) -> RunState:
    """How the only run stands, wherever the number of its blocks comes from."""
    (run,) = read_states(output)
    return replace(run, state=run.state.model_copy(update={"blocks_done": None, "blocks": None}))


def made_image(output: Path, slide: str = "s") -> Path:
    image = output / ".slidesam" / slide / ".image"
    for stage in ("convert-1", "rechunk-2"):
        (image / stage).mkdir(parents=True)
        (image / stage / "data").write_bytes(b"x" * 100)
    return image


def stages(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_keeps_its_results_and_its_state(tmp_path: Path) -> None:
    work = made(tmp_path)
    (tmp_path / "s.ome.zarr").mkdir()
    (tmp_path / "s.ome.zarr" / "segment-1").write_text("mine")
    results = {name: data for name, data in files(tmp_path).items() if not name.startswith(".slidesam")}
    shown = standing(tmp_path)
    assert clean_folder(tmp_path, keep=None, now=NOW) == [("s", "cells", 60, 6, "")]
    assert [path.name for path in work.iterdir()] == ["state.json"]
    assert {name: data for name, data in files(tmp_path).items() if not name.startswith(".slidesam")} == results
    assert shown.blocks_done == 1
    assert standing(tmp_path) == shown
    assert clean_folder(tmp_path, keep=None, now=NOW) == []


@pytest.mark.parametrize(
    ("days", "own", "keep", "goes"),
    [
        (6.9, "7d", None, False),
        (7.1, "7d", None, True),
        (7.1, "2w", None, False),
        (6.9, None, None, False),
        (7.1, None, None, True),
        (7.1, "nonsense", None, True),
        (0.1, "7d", 0.0, True),
        (7.1, "7d", 8 * DAY, False),
        (7.1, "2w", 7 * DAY, True),
        (-1, "7d", 0.0, False),
    ],
)
def test_how_long_results_are_kept(
    days: float, own: str | None, keep: float | None, goes: bool, tmp_path: Path
) -> None:
    work = made(tmp_path, days=days, keep=own)
    assert len(clean_folder(tmp_path, keep=keep, now=NOW)) == goes
    assert stages(work) == ([] if goes else STAGES)


@pytest.mark.parametrize("status", ["running", "stopped", "failed", None])
def test_what_is_not_finished_stays(status: str | None, tmp_path: Path) -> None:
    work, good = made(tmp_path), made(tmp_path, "other")
    if status is None:
        (work / "state.json").unlink()
    else:
        write_state(tmp_path, "s", "cells", status, blocks=9)
    assert [removed.slide for removed in clean_folder(tmp_path, keep=0, now=NOW)] == ["other"]
    assert stages(work) == STAGES
    assert stages(good) == []


@pytest.mark.parametrize(
    "text", [None, "", "[]", '{"status": "finished"}', '{"status": "finished", "finished": 1}', "\xff", "undated"]
)
def test_without_provenance_nothing_goes(text: str | None, tmp_path: Path) -> None:
    work = made(tmp_path)
    (tmp_path / "s.cells.run.json").unlink()
    if text == "undated":
        finished_record(finished="").write(tmp_path / "s.cells.run.json")
    elif text is not None:
        (tmp_path / "s.cells.run.json").write_bytes(text.encode("latin-1"))
    assert clean_folder(tmp_path, keep=0, now=NOW) == []
    assert stages(work) == STAGES


def test_what_somebody_is_at_work_on_stays(tmp_path: Path) -> None:
    work = made(tmp_path)
    with locked(work / "lock.json", "a run", target="s"):
        for dry_run in (True, False):
            assert clean_folder(tmp_path, keep=0, dry_run=dry_run, now=NOW) == []
        assert stages(work) == STAGES
    # Its process is gone.
    owner = Owner.this_process("a run")
    (work / "lock.json").write_text(owner.model_copy(update={"born": 1}).model_dump_json())
    for dry_run in (True, False):
        assert len(clean_folder(tmp_path, keep=0, dry_run=dry_run, now=NOW)) == 1
    assert [path.name for path in work.iterdir()] == ["state.json"]


def test_no_run_begins_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, held = made(tmp_path), []
    remove = clean_module._remove
    monkeypatch.setattr(
        clean_module, "_remove", lambda path: held.append((work / "lock.json").exists()) or remove(path)
    )
    clean_folder(tmp_path, keep=0, now=NOW)
    assert held == [True] * 3


def test_a_run_that_began_before_the_lock_was_had_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = made(tmp_path)

    def late(*args, **kwargs):
        write_state(tmp_path, "s", "cells", "running")
        return locked(*args, **kwargs)

    monkeypatch.setattr(clean_module, "locked", late)
    assert clean_folder(tmp_path, keep=0, now=NOW) == []
    assert stages(work) == STAGES


def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path)
    made_image(tmp_path)
    before = files(tmp_path)
    told = clean_folder(tmp_path, keep=0, dry_run=True, now=NOW)
    assert files(tmp_path) == before
    assert clean_folder(tmp_path, keep=0, now=NOW) == told
    assert told == [("s", "cells", 60, 6, ""), ("s", ".image", 200, 2, "")]


def test_a_crash_leaves_nothing_that_a_later_run_takes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each removal of a file in turn: a stage is there whole or not at all, and never without those before it."""
    order = ["segment-1", "stitch-2", "paint-3"]
    seen = set()
    for stop_after in range(40):
        output = tmp_path / str(stop_after)
        work = made(output)
        whole = files(work)
        calls = iter(range(stop_after))

        def dying(path, *args, calls=calls, real=os.unlink, **kwargs):
            if str(path).endswith(("data", "0.arrays")) and next(calls, None) is None:
                raise KeyboardInterrupt
            return real(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", dying)
            try:
                clean_folder(output, keep=0, now=NOW)
            except KeyboardInterrupt:
                pass
            else:
                break
        left = [name for name in stages(work) if not name.startswith(".trash-")]
        assert left in (sorted(order[:n]) for n in range(4))
        for name in left:
            assert files(work / name) == {
                key.removeprefix(f"{name}/"): data for key, data in whole.items() if key.startswith(f"{name}/")
            }
        seen.add(len(left))
        # And the next call removes the rest at once.
        clean_folder(output, keep=0, now=NOW)
        assert [path.name for path in work.iterdir()] == ["state.json"]
    assert stop_after == 6
    assert seen == {0, 1, 2}


def test_the_image_goes_with_the_last_run_of_its_slide(tmp_path: Path) -> None:
    made(tmp_path)
    late = made(tmp_path, label="nuclei", days=1)
    image = made_image(tmp_path)
    (image / "note.txt").write_text("kept")
    (tmp_path / ".slidesam" / "s" / "empty").mkdir()
    assert [removed.label for removed in clean_folder(tmp_path, keep=None, now=NOW)] == ["cells"]
    assert stages(late) == STAGES
    later = NOW + timedelta(days=7)
    for lock in (image / "lock.json", late / "lock.json"):
        with locked(lock, "a run", target="s"):
            assert ".image" not in [removed.label for removed in clean_folder(tmp_path, keep=None, now=later)]
    assert clean_folder(tmp_path, keep=None, now=later)[-1] == ("s", ".image", 200, 2, "")
    assert [path.name for path in image.iterdir()] == ["note.txt"]


def test_an_image_without_runs_or_with_a_new_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made_image(tmp_path)
    assert clean_folder(tmp_path, keep=0, now=NOW) == []
    made(tmp_path)

    def late(*args, **kwargs):
        # A run under another label, that isn't yet at its first stage.
        (tmp_path / ".slidesam" / "s" / "nuclei").mkdir(exist_ok=True)
        (tmp_path / ".slidesam" / "s" / "nuclei" / "lock.json").touch()
        return locked(*args, **kwargs)

    shutil.rmtree(tmp_path / ".slidesam" / "s" / "cells" / "paint-3")
    clean_folder(tmp_path, keep=0, now=NOW + timedelta(days=-31))
    monkeypatch.setattr(clean_module, "locked", late)
    assert [removed.label for removed in clean_folder(tmp_path, keep=0, now=NOW)] == ["cells"]
    assert stages(image) == ["convert-1", "rechunk-2"]


def test_what_crashes_left_goes_even_of_unfinished_runs(tmp_path: Path) -> None:
    work = made(tmp_path)
    write_state(tmp_path, "s", "cells", "running")
    kept = files(tmp_path)
    (work / ".trash-1" / "blocks").mkdir(parents=True)
    (work / ".trash-1" / "blocks" / "0.arrays").write_bytes(b"x" * 5)
    old = [
        work / "segment-1" / "blocks" / f".0.arrays.{'a' * 32}.partial",
        work / f".lock.json.{'b' * 32}.partial",
        work / f".lock.json.{'c' * 32}.claim",
    ]
    young = work / f".state.json.{'d' * 32}.partial"
    others = [work / ".mine.partial", work / f"zarr.{'e' * 32}.partial"]
    for path in [*old, young, *others]:
        path.write_bytes(b"x")
        os.utime(path, (NOW.timestamp() - DAY - 1,) * 2)
    os.utime(young, (NOW.timestamp() - DAY + 60,) * 2)
    assert clean_folder(tmp_path, keep=None, now=NOW) == [("s", "cells", 8, 4, "")]
    assert files(tmp_path) == kept | {str(path.relative_to(tmp_path)): b"x" for path in [young, *others]}


def test_half_written_files_of_a_result_go_too(tmp_path: Path) -> None:
    made(tmp_path)
    write_state(tmp_path, "s", "cells", "running")
    labels = tmp_path / "s.ome.zarr" / "labels" / "cells" / "0"
    labels.mkdir(parents=True, exist_ok=True)
    kept = files(tmp_path)
    old = [
        labels / f".zarr.json.{'a' * 32}.partial",
        labels / f"0.{'b' * 32}.partial",
        tmp_path / f".s.cells.run.json.{'c' * 32}.partial",
    ]
    others = [
        labels / f"1.{'d' * 32}.partial",
        tmp_path / f".t.cells.run.json.{'e' * 32}.partial",
        labels / "0.partial",
    ]
    for path in [*old, *others]:
        path.write_bytes(b"x")
        os.utime(path, (NOW.timestamp() - DAY - 1,) * 2)
    os.utime(others[0], (NOW.timestamp() - DAY + 60,) * 2)
    assert clean_folder(tmp_path, keep=None, now=NOW) == [("s", "result", 3, 3, "")]
    assert files(tmp_path) == kept | {str(path.relative_to(tmp_path)): b"x" for path in others}


def test_claims_of_a_lock_that_is_there_stay(tmp_path: Path) -> None:
    work = made(tmp_path)
    write_state(tmp_path, "s", "cells", "running")
    claim = work / f".lock.json.{'c' * 32}.claim"
    claim.write_text("")
    os.utime(claim, (0, 0))
    (work / "lock.json").write_text("")
    assert clean_folder(tmp_path, keep=0, now=NOW) == []
    assert claim.exists()


def test_one_run_that_cannot_be_removed_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = made(tmp_path, "a"), made(tmp_path, "b")
    rename = Path.rename

    def fail(self, target):
        if self.is_relative_to(bad) and self.name.startswith("stitch"):
            raise PermissionError(errno.EACCES, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    first, second = clean_folder(tmp_path, keep=0, now=NOW)
    assert first[:4] == ("a", "cells", 20, 2)
    assert "stitch-2 can't be removed (Permission denied): correct its permissions" in first.error
    assert second == ("b", "cells", 60, 6, "")
    assert stages(bad) == ["segment-1", "stitch-2"]
    assert stages(good) == []


def test_a_full_disk_can_be_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, busy = made(tmp_path), made(tmp_path, "busy")
    real = Path.open

    def full(self, mode="r", *args, **kwargs):
        if set(mode) & set("wxa"):
            raise OSError(errno.ENOSPC, "full")
        return real(self, mode, *args, **kwargs)

    with locked(busy / "lock.json", "a run", target="busy"):
        monkeypatch.setattr(Path, "open", full)
        assert [removed[:2] for removed in clean_folder(tmp_path, keep=0, now=NOW)] == [("s", "cells")]
        monkeypatch.setattr(Path, "open", real)
    assert stages(work) == []
    assert stages(busy) == STAGES


def test_links_are_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    work = made(output)
    elsewhere = tmp_path / "elsewhere"
    (work / "segment-1").rename(elsewhere)
    (work / "segment-1").symlink_to(elsewhere)
    clean_folder(output, keep=0, now=NOW)
    assert len(files(elsewhere)) == 2


def test_folders_without_anything(tmp_path: Path) -> None:
    assert clean_folder(tmp_path, keep=0) == []
    assert size_of(tmp_path) == (0, 0)
    with pytest.raises(OutputError, match="none is not a folder: give the folder"):
        clean_folder(tmp_path / "none", keep=0)


def test_a_real_run_is_finished_before_and_after(tmp_path: Path) -> None:
    slide, output = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    overrides = {
        "segmenter.kind": "function",
        "segmenter.target": "tests.support.faults:bright_pieces",
        "blocks.block_shape": 64,
        "blocks.halo": 16,
    }
    labels = segment_serially(slide, output, overrides)
    run = plan_run(slide, output, make_settings(overrides=overrides))
    facts = read_finished(run)
    assert facts is not None
    record_finished(run, facts)
    before = size_of(output)
    assert clean_folder(output, keep=None) == []
    shown = standing(output)
    removed = clean_folder(output, keep=0)
    assert [entry.label for entry in removed] == ["cells", ".image"]
    # How the run stands, and whose store it is.
    assert size_of(output).files == 2
    assert before.files == sum(entry.files for entry in removed) + 2
    assert read_finished(run) == facts
    assert standing(output) == shown
    assert shown.blocks_done == 9
    # Another stitching starts from the slide again, and comes out the same.
    (output / "s.cells.run.json").unlink()
    np.testing.assert_array_equal(segment_serially(slide, output, overrides), labels)
    assert zarr.open_group(run.store, mode="r")["labels"].attrs["ome"]["labels"] == ["cells"]
