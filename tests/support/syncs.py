"""What this process has synced: files by their inode, folders after the last name that came into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# What nothing vouches for: notes that a reader does without.
_NOTES = ("lock.json", "state.json", ".partial", ".claim", "/starts/")


class Syncs:
    """A record of what is synced in a folder, in order.

    Attributes:
        unsynced_files: Files that weren't on the disk, or perhaps not, as the wanted name was given.
        unsynced_folders: Folders whose names weren't.
    """

    def __init__(self, root: Path, until: str) -> None:
        self._root, self._until = root, until
        self._clock = 0
        self._files: set[int] = set()
        self._synced: dict[int, int] = {}
        self._changed: dict[Path, int] = {}
        self._last_change = 0
        self.unsynced_files: list[str] = []
        self.unsynced_folders: list[str] = []

    def note_sync(self, descriptor: int) -> None:
        """Note that a file or folder is synced."""
        self._clock += 1
        inode = os.fstat(descriptor).st_ino
        self._files.add(inode)
        self._synced[inode] = self._clock

    def note_name(self, path: Path) -> None:
        """Note that a name is given; look what is synced if it is the wanted one."""
        self._clock += 1
        if path.is_relative_to(self._root) and not _is_note(path):
            self._changed[path.parent] = self._clock
        if path.name.endswith(self._until):
            self._look(path)

    def is_synced_after(self, folder: Path) -> bool:
        """Whether a folder was synced after the last name that came into it."""
        return self._synced.get(folder.stat().st_ino, 0) > self._changed.get(folder, 0)

    def _look(self, named: Path) -> None:
        for path in sorted(self._root.rglob("*")):
            where = str(path.relative_to(self._root))
            if path.is_file() and not _is_note(path) and path.stat().st_ino not in self._files:
                self.unsynced_files.append(where)
            if path.is_dir() and path != named.parent and path in self._changed and not self.is_synced_after(path):
                self.unsynced_folders.append(where)


@contextmanager
def record_syncs(root: Path, until: str) -> Iterator[Syncs]:
    """Record what this process syncs, and look what isn't as soon as a file whose name ends so has its name.

    Args:
        root: The folder.
        until: How the file's name ends.
    """
    syncs = Syncs(root, until)

    def noting(function: Callable[..., Any], note: Callable[..., None], *, at: int) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            note(arguments[at] if note == syncs.note_sync else Path(arguments[at]))
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, noting(getattr(os, name), syncs.note_sync, at=0))
        for name, at in (("replace", 1), ("rename", 1), ("link", 1), ("mkdir", 0)):
            patch.setattr(os, name, noting(getattr(os, name), syncs.note_name, at=at))
        yield syncs


def _is_note(path: Path) -> bool:
    return any(part in str(path) for part in _NOTES)
