"""Check how files of the output are written: whole, in a durable order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import remove_synced, sync_files, sync_folders, write_atomic


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: names of synchronized files and folders, of renamed and of removed files."""
    seen: list[str] = []
    sync, rename, unlink = os.fsync, Path.replace, Path.unlink

    def record_sync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name.rpartition('.')[2]}")
        sync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        seen.append(f"name {target.name}")
        return rename(path, target)

    def record_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        seen.append(f"remove {path.name}")

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    monkeypatch.setattr(Path, "unlink", record_unlink)
    return seen


def test_file_is_on_the_disk_before_its_name_and_its_name_before_the_next_step(
    tmp_path: Path, order: list[str]
) -> None:
    write_atomic(tmp_path / "a" / "b" / "mark", b"done")
    assert order == [f"sync {tmp_path.name}", "sync a", "sync partial", "name mark", "sync b"]
    assert (tmp_path / "a" / "b" / "mark").read_bytes() == b"done"
    order.clear()
    write_atomic(tmp_path / "a" / "c" / "mark", b"done", sync=False)
    assert order == ["name mark"]


def test_many_files_and_folders_are_synchronized(tmp_path: Path, order: list[str]) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for file in files:
        file.write_bytes(b"pixels")
    sync_files(files)
    assert sorted(order) == sorted(f"sync {file.name}" for file in files)
    order.clear()
    sync_folders(file.parent for file in files)
    assert order == [f"sync {tmp_path.name}"]


def test_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for synchronize in (sync_files, sync_folders):
        with pytest.raises(OutputError, match=r"absent.*No such file.*run the same command again"):
            synchronize([tmp_path / "absent"])


def test_what_vouches_is_gone_before_the_rest_changes(tmp_path: Path, order: list[str]) -> None:
    (tmp_path / "mark").write_text("done")
    remove_synced(tmp_path / "absent", tmp_path / "mark" / "in a file", tmp_path / "mark")
    assert order == ["remove mark", f"sync {tmp_path.name}"]
