"""Lists of files: what is gone or another is damage, what the system says isn't."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.store.file_list import has_all, vouch_for


def test_what_the_system_does_not_let_be_looked_at_is_not_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"abc")
    files = vouch_for([path], tmp_path)
    assert has_all(files, tmp_path)

    def refuse(self: Path) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(
            OutputError, match=rf"{path} can't be read \({os.strerror(errno.ESTALE)}\): check the folder"
        ):
            has_all(files, tmp_path)
    path.unlink()
    assert not has_all(files, tmp_path)
