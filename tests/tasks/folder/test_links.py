"""Links in an output folder, and names in its records, that lead elsewhere: nothing there is removed, overwritten or counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slidesam.flows.cluster.keys import remove_dead_keys
from slidesam.tasks.errors import OutputError
from slidesam.tasks.folder.clean import clean_folder, size_of
from slidesam.tasks.plan import prepare_output
from slidesam.tasks.run.layout import RunPaths, jobs_folder
from slidesam.tasks.run.owner import Owner
from slidesam.tasks.run.status import list_unfinished, read_states, write_state
from tests.support.other_user import OTHER, as_other_user, needs_root, open_folder
from tests.tasks.folder.test_clean import NOW, STAGES, files, made, made_image, stages


def move_away(path: Path, elsewhere: Path) -> dict[str, bytes]:
    """Move a folder elsewhere and put a link in its place; return what it holds."""
    elsewhere.parent.mkdir(exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return files(elsewhere)


@pytest.mark.parametrize("place", ["", "s", "s/cells", "s/.image", "s/cells/segment-1", "s/.image/convert-1", ".jobs"])
def test_clean_removes_nothing_through_a_link(place: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    work, image, logs = made(output), made_image(output), output / ".slidesam" / ".jobs"
    logs.mkdir()
    for path in (logs / "a.log", work / ".trash-1" / "x", image / ".trash-1" / "x", work / f".x.{'a' * 32}.partial"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    outside = move_away(output / ".slidesam" / place, tmp_path / "elsewhere" / "x")
    if place:
        removed = clean_folder(output, keep=0, now=NOW)
        assert [run for run in removed if run.error] == []
    else:
        with pytest.raises(OutputError, match=r"\.slidesam is a link: clean removes nothing outside"):
            clean_folder(output, keep=0, now=NOW)
    assert files(tmp_path / "elsewhere" / "x") == outside


def test_a_link_that_looks_like_a_leftover_goes_itself(tmp_path: Path) -> None:
    output, outside = tmp_path / "out", tmp_path / "mine"
    work = made(output)
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 1000)
    (work / ".trash-1").symlink_to(outside)
    (work / "segment-1" / ".trash-2").symlink_to(outside)
    (removed,) = clean_folder(output, keep=0, now=NOW)
    assert (removed.error, removed.bytes < 1000) == ("", True)
    assert [path.name for path in work.iterdir()] == ["state.json"]
    assert files(outside) == {"precious": b"x" * 1000}
    assert size_of(output).files == 1


def test_a_log_that_is_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / ".slidesam" / ".jobs").mkdir(parents=True)
    (tmp_path / "mine.log").write_text("x")
    link = tmp_path / ".slidesam" / ".jobs" / "a.log"
    link.symlink_to(tmp_path / "mine.log")
    for path in (tmp_path / "mine.log", link):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert clean_folder(tmp_path, keep=0, now=NOW) == []


@pytest.mark.parametrize("place", ["", ".jobs", ".jobs/a.keys"])
def test_keys_of_ended_runs_are_removed_through_no_link(place: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = output / ".slidesam" / ".jobs" / "a.keys"
    folder.mkdir(parents=True)
    ended = Owner.this_process("a run").model_copy(update={"born": 1})
    (folder / "owner.json").write_text(ended.model_dump_json())
    outside = move_away(output / ".slidesam" / place, tmp_path / "elsewhere" / "x")
    remove_dead_keys(jobs_folder(output), {"a"})
    assert files(tmp_path / "elsewhere" / "x") == outside


PLACES = [
    ".slidesam", ".slidesam/.jobs", ".slidesam/.inbox", ".slidesam/s", ".slidesam/s/cells", ".slidesam/s/.image",
    ".slidesam/s/cells/segment-1", ".slidesam/s/cells/segment-1/marks", ".slidesam/s/cells/lock.json",
    ".slidesam/s/.image/convert-1", ".slidesam/s/.image/labels",
    "s.ome.zarr", "s.ome.zarr/0", "s.ome.zarr/zarr.json", "s.ome.zarr/labels", "s.ome.zarr/labels/cells",
    "s.ome.zarr/labels/cells/0",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_run_writes_through_no_link(place: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    made(output)
    made_image(output)
    path = output / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=rf"out/{place} is a link to {tmp_path}/elsewhere, where files would be"):
        prepare_output(output, RunPaths(output, "s", "cells"))
    # An output folder may be one as a whole, and other slides' runs may be what they are.
    path.unlink()
    (output / ".slidesam").mkdir(exist_ok=True)
    (output / ".slidesam" / "t").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(output)
    prepare_output(tmp_path / "link", RunPaths(tmp_path / "link", "s", "cells"))


@pytest.mark.parametrize("name", ["../../../../elsewhere/segment-9", "/elsewhere", "..", ".", ""])
def test_a_name_in_a_state_file_leads_nowhere(name: str, tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "segment-9"
    (elsewhere / "marks").mkdir(parents=True)
    for number in range(3):
        (elsewhere / "marks" / f"{number}.json").write_text("{}")
    work = made(output)
    write_state(output, "s", "cells", "finished", blocks=9, segment_folder=name)
    assert read_states(output)[0].blocks_done == 0
    clean_folder(output, keep=0, now=NOW)
    assert stages(work) == []
    assert len(files(elsewhere)) == 3


@needs_root
@pytest.mark.parametrize("place", ["theirs", "theirs/cells", "theirs/.image", "theirs/cells/segment-1"])
def test_folders_that_only_another_user_can_enter_cost_the_others_nothing(place: str) -> None:
    with open_folder() as output:
        work, theirs = made(output, "ours"), made(output, "theirs")
        made_image(output, "theirs")
        for path in [output, output / ".slidesam", *(output / ".slidesam" / "ours").rglob("*"), work.parent]:
            os.chown(path, OTHER, OTHER)
        (output / ".slidesam" / place).chmod(0o700)
        with as_other_user():
            assert "ours" in [run.slide for run in read_states(output)]
            assert "ours" not in [run.slide for run in list_unfinished(output)]
            size_of(output)
            removed = clean_folder(output, keep=0, now=NOW)
        assert ("ours", "cells", 60, 6, "") in removed
        assert all("ermission" in run.error for run in removed if run.slide == "theirs")
        assert stages(work) == []
        assert stages(theirs) == STAGES
