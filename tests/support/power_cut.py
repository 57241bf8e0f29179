"""Power cuts on a real ext4: an output folder in a file system whose disk is a file, and copies of that file.

What the mounted ext4 has not handed to its disk yet isn't in the file, so a copy of the file, made without a sync, is what a
power cut leaves. Mounting the copy replays ext4's journal, as after a power cut. Names and data reach the disk at different
times: ext4 writes names every 5 s, and at once when any file is fsynced; data only when its own file is fsynced, or some 30 s
later (delayed allocation). A cut that is `forced` has the names on the disk, and only such data as was fsynced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

MEBIBYTES = 64


class Disk:
    """A file that holds an ext4, and the folder where it is mounted.

    Args:
        folder: Where both lie; it must not be shared with another disk.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.root = folder / "disk.ext4", folder / "mounted"
        self.root.mkdir(exist_ok=True)

    def make(self) -> None:
        """Make the file system, empty, and mount it."""
        self.unmount()
        self.file.unlink(missing_ok=True)
        with self.file.open("wb") as stream:
            stream.truncate(MEBIBYTES << 20)
        # Lazy initialisation would write to the disk at times of its own.
        features = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "8192", "-J", "size=8", "-E", features, self.file)
        self.mount()

    def mount(self, cut: Path | None = None) -> None:
        """Mount the file system; with a cut, the one that the cut left, in a copy."""
        if cut is not None:
            self.unmount()
            # Another file: a loop device that isn't gone yet would be taken for the same file, with what it has in memory.
            self.file.unlink()
            _copy(cut, self.file)
        _run("mount", "-t", "ext4", "-o", "loop,data=ordered,commit=5", self.file, self.root)

    def unmount(self) -> None:
        """Unmount the file system, if it is mounted."""
        if os.path.ismount(self.root):
            _run("umount", self.root)

    def cut(self, copy: Path, *, forced: bool) -> Path:
        """Copy what has reached the disk; nothing may write to the file system meanwhile.

        Args:
            copy: Where the copy is to lie.
            forced: Whether all names are written first, as ext4 does when any file is fsynced.
        """
        if forced:
            with (self.root / ".names").open("wb") as stream:
                stream.write(b"x")
                stream.flush()
                os.fsync(stream.fileno())
        while True:
            before = self.file.stat().st_mtime_ns
            _copy(self.file, copy)
            # ext4's own threads may have written to the disk meanwhile.
            if self.file.stat().st_mtime_ns == before:
                return copy


@dataclass
class Cuts:
    """Cuts of one run, in the order of their times.

    Attributes:
        disk: The disk of the run.
        folder: Where the copies lie.
        taken: Of each cut the path that had just been renamed, below the disk's root, and the copy.
    """

    disk: Disk
    folder: Path
    taken: list[tuple[str, Path]] = field(default_factory=list)

    def take(self, name: str) -> None:
        """Cut the power now, with all names on the disk."""
        copy = self.folder / f"cut-{len(self.taken)}"
        self.taken.append((name, self.disk.cut(copy, forced=True)))

    def last_of(self, is_wanted: Callable[[str], bool]) -> Path:
        """Find the last cut after the rename of such a path.

        Raises:
            ValueError: There is none: the names of files have changed.
        """
        for name, copy in reversed(self.taken):
            if is_wanted(name):
                return copy
        raise ValueError(f"no such path was renamed; renamed were {[name for name, _ in self.taken]}")


@contextmanager
def cut_after_each_rename(cuts: Cuts, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut the power after each rename that this process makes on the disk, before anything that follows it."""
    replace = os.replace

    def replace_and_cut(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        path = Path(target)
        if path.is_relative_to(cuts.disk.root):
            cuts.take(str(path.relative_to(cuts.disk.root)))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_cut)
        yield


def why_no_disk(folder: Path) -> str:
    """Say why no ext4 can be made and mounted here; empty where one can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if shutil.which("mkfs.ext4", path=_PATH) is None:
        return "mkfs.ext4 isn't installed"
    disk = Disk(folder / "try")
    try:
        disk.make()
        disk.unmount()
    except subprocess.CalledProcessError as error:
        return f"no ext4 can be mounted from a file: {error.stderr.strip()}"
    finally:
        disk.file.unlink(missing_ok=True)
    return ""


_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/sbin", "/usr/sbin"))


def _run(*words: object) -> None:
    subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}
    )


def _copy(source: Path, target: Path) -> None:
    _run("cp", "--sparse=always", source, target)
