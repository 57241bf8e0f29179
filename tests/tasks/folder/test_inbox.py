"""Which slides have arrived: only those that no longer change, and each content of a file once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slidesam.tasks.folder.inbox import has_result, look, record_started
from slidesam.tasks.settings.parse import make_settings
from tests.support.records import finished_record
from tests.support.slides import write_numbered_slide

QUIET = 60.0


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def seen(inbox: Path, now: float) -> tuple[dict[str, bool], set[str]]:
    """Names of those that are whole, with whether they were started, and of those that aren't."""
    whole, growing = look(inbox, inbox.parent / "memory.json", QUIET, now)
    return {each.path.name: each.is_started for each in whole}, {path.name for path in growing}


def test_a_slide_is_whole_once_it_has_been_the_same_for_a_while(inbox: Path) -> None:
    slide = inbox / "a.svs"
    slide.write_bytes(b"1")
    assert seen(inbox, 0) == ({}, {"a.svs"})
    slide.write_bytes(b"12")
    assert seen(inbox, 70) == ({}, {"a.svs"})
    assert seen(inbox, 129) == ({}, {"a.svs"})
    assert seen(inbox, 130) == ({"a.svs": False}, set())


def test_a_file_of_fixed_size_that_is_filled_in_is_seen_to_change(inbox: Path) -> None:
    # As copies do that ask for all the room first.
    slide = inbox / "a.svs"
    slide.write_bytes(b"00")
    seen(inbox, 0)
    slide.write_bytes(b"10")
    os.utime(slide, ns=(0, slide.stat().st_mtime_ns + 1))
    assert seen(inbox, 100) == ({}, {"a.svs"})


def test_times_of_other_clocks_mean_nothing(inbox: Path) -> None:
    slide = inbox / "a.svs"
    slide.write_bytes(b"1")
    os.utime(slide, (0, 0))
    assert seen(inbox, 10**9) == ({}, {"a.svs"})


def test_empty_files_hidden_ones_and_those_being_copied_are_no_slides_yet(inbox: Path) -> None:
    (inbox / "a.svs").touch()
    for name in (".b.svs", "c.svs.part", "d.svs.filepart", "e.txt"):
        (inbox / name).write_bytes(b"1")
    seen(inbox, 0)
    assert seen(inbox, 1000) == ({}, {"a.svs"})


def test_a_folder_is_whole_when_all_in_it_is(inbox: Path) -> None:
    (inbox / "a.zarr" / "0" / "c").mkdir(parents=True)
    (inbox / "a.zarr" / "0" / "c" / "0").write_bytes(b"1")
    seen(inbox, 0)
    (inbox / "a.zarr" / "0" / "c" / "1").write_bytes(b"1")
    assert seen(inbox, 100) == ({}, {"a.zarr"})
    assert seen(inbox, 160) == ({"a.zarr": False}, set())


def test_a_content_is_started_once_and_another_once_more(inbox: Path) -> None:
    slide, memory = inbox / "a.svs", inbox.parent / "memory.json"
    slide.write_bytes(b"1")
    seen(inbox, 0)
    (first,), _ = look(inbox, memory, QUIET, 100)
    record_started(memory, first)
    assert seen(inbox, 200) == ({"a.svs": True}, set())
    slide.write_bytes(b"22")
    seen(inbox, 300)
    (second,), _ = look(inbox, memory, QUIET, 400)
    assert not second.is_started
    assert second.version != first.version


def test_a_folder_that_is_away_comes_back_as_it_was(inbox: Path, tmp_path: Path) -> None:
    (inbox / "a.svs").write_bytes(b"1")
    seen(inbox, 0)
    (first,), _ = look(inbox, tmp_path / "memory.json", QUIET, 100)
    record_started(tmp_path / "memory.json", first)
    inbox.rename(tmp_path / "mounted")
    inbox.mkdir()
    assert seen(inbox, 200) == ({}, set())
    inbox.rmdir()
    (tmp_path / "mounted").rename(inbox)
    assert seen(inbox, 300) == ({"a.svs": True}, set())


def test_a_link_to_nowhere_in_a_folder_costs_nothing(inbox: Path) -> None:
    (inbox / "a.zarr").mkdir()
    (inbox / "a.zarr" / "zarr.json").write_text("{}")
    (inbox / "a.zarr" / "link").symlink_to(inbox / "nowhere")
    seen(inbox, 0)
    assert seen(inbox, 100) == ({"a.zarr": False}, set())


def test_another_file_under_its_name_is_another_slide(inbox: Path) -> None:
    (inbox / "a.svs").write_bytes(b"1")
    seen(inbox, 0)
    (inbox / "a.svs").unlink()
    assert seen(inbox, 100) == ({}, set())
    (inbox / "a.svs").write_bytes(b"1")
    assert seen(inbox, 200) == ({}, {"a.svs"})


def test_a_damaged_memory_costs_time_only(inbox: Path) -> None:
    (inbox / "a.svs").write_bytes(b"1")
    seen(inbox, 0)
    (inbox.parent / "memory.json").write_text("{")
    assert seen(inbox, 100) == ({}, {"a.svs"})
    assert seen(inbox, 160) == ({"a.svs": False}, set())


def test_a_result_is_that_of_this_very_file(tmp_path: Path) -> None:
    from slidesam.tasks.slides.inspect import inspect_slide

    slide, settings = write_numbered_slide(tmp_path / "a.tif"), make_settings()
    record = finished_record(slide=inspect_slide(slide))
    assert not has_result(slide, tmp_path, settings)
    record.write(tmp_path / "a.cells.run.json")
    assert has_result(slide, tmp_path, settings)
    assert not has_result(slide, tmp_path, make_settings(overrides={"output.label": "nuclei"}))
    os.utime(slide, ns=(0, slide.stat().st_mtime_ns + 1))
    assert not has_result(slide, tmp_path, settings)
    slide.write_bytes(b"no slide")
    assert not has_result(slide, tmp_path, settings)
