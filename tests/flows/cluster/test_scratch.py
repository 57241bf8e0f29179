"""The folder for temporary files of workers: nobody else of the machine owns it, or can enter it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from slidesam.flows.cluster.scratch import make_scratch_folder
from tests.support.other_user import OTHER, needs_root


def test_it_is_ones_own_and_the_same_each_time(tmp_path: Path) -> None:
    folder = make_scratch_folder(tmp_path / "new")
    assert folder == tmp_path / "new" / f"slidesam-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert make_scratch_folder(tmp_path / "new") == folder


def test_it_lies_where_dasks_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert make_scratch_folder().parent == tmp_path


def taken_by_other(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    os.chown(folder, OTHER, OTHER)


@needs_root
@pytest.mark.parametrize(
    "take",
    [
        taken_by_other,
        lambda folder: folder.symlink_to("/tmp"),
        lambda folder: folder.write_text(""),
        lambda folder: folder.mkdir() or folder.chmod(0o777),
    ],
    ids=["another user's", "a link", "a file", "open to all"],
)
def test_a_name_that_is_taken_is_left_alone(take, tmp_path: Path) -> None:
    take(tmp_path / f"slidesam-{os.getuid()}")
    folder = make_scratch_folder(tmp_path)
    assert folder.parent == tmp_path
    assert folder.name != f"slidesam-{os.getuid()}"
    assert (stat.S_IMODE(folder.lstat().st_mode), folder.lstat().st_uid) == (0o700, 0)
