"""The lists of a result's files, with sizes and checksums: how they are made, and how damage is found by them.

A task that has written files brings them to the disk and describes them in its done-mark (`vouch_for`). A finished image or label
image joins these into its list, with the text of Zarr's metadata files, so that one that is damaged can be written again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import sync_files, sync_folders, write_atomic
from slidesam.tasks.run.records import FileList
from slidesam.tasks.slides.zarr.metadata import METADATA_FILES

Files = dict[str, tuple[int, int]]
# What is read at once.
_READ_BYTES = 2**20


class Damage(NamedTuple):
    """A file that isn't as it was written.

    Attributes:
        path: The file.
        what: What is wrong with it, as a predicate.
        is_certain: Whether that is known; not of a file that can't be read, which may be sound.
    """

    path: Path
    what: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def vouch_for(paths: Iterable[Path], output: Path, *, is_sparse: bool = False) -> Files:
    """Wait until files that were written have reached the disk under their names, and describe them.

    Args:
        paths: The files.
        output: The output folder.
        is_sparse: Whether some may be absent: shards of labels without any object aren't written.

    Returns:
        Size and crc32c, by path below the output folder.

    Raises:
        OutputError: They can't be brought to the disk, or one isn't there.
    """
    existing = [path for path in paths if not is_sparse or path.exists()]
    sync_files(existing)
    # Deepest first; those above may be new, too.
    folders = {folder for path in existing for folder in path.parents if output in folder.parents}
    sync_folders(sorted(folders, key=lambda folder: -len(folder.parts)))
    return {str(path.relative_to(output)): describe(path) for path in sorted(existing)}


def describe(path: Path) -> tuple[int, int]:
    """Return size in bytes and crc32c of a file.

    Raises:
        OSError: It can't be read, or is none.
    """
    # A FIFO in its place must not wait for who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no file")
        size, checksum = 0, 0
        while data := stream.read(_READ_BYTES):
            size += len(data)
            checksum = google_crc32c.extend(checksum, data)
    return size, checksum


def read_metadata(folders: Iterable[Path], output: Path) -> dict[str, str]:
    """Bring Zarr's metadata files of groups and arrays to the disk; return their text by path below the output folder."""
    paths = sorted(folder / name for folder in folders for name in METADATA_FILES if (folder / name).is_file())
    sync_files(paths)
    sync_folders(path.parent for path in paths)
    return {str(path.relative_to(output)): path.read_text() for path in paths}


def restore_metadata(listed: FileList, output: Path) -> list[Damage]:
    """Write metadata files again that aren't as the list has them.

    Returns:
        What was wrong with them.

    Raises:
        OutputError: They can't be written.
    """
    damages = list(find_metadata_damage(listed, output))
    for damage in damages:
        write_atomic(damage.path, listed.metadata[str(damage.path.relative_to(output))].encode())
    return damages


def find_metadata_damage(listed: FileList, output: Path) -> Iterator[Damage]:
    """Find the metadata files that aren't as the list has them."""
    for path, text in listed.metadata.items():
        data = text.encode()
        damage = find_damage(output / path, (len(data), google_crc32c.value(data)))
        if damage is not None:
            yield damage


def find_size_damage(files: Files, output: Path) -> Iterator[Damage]:
    """Find the files that are gone or have another size, without reading any."""
    for path, (size, _) in files.items():
        try:
            facts = (output / path).stat()
        except OSError as error:
            yield _unreadable(output / path, error)
            continue
        if facts.st_size != size or not stat.S_ISREG(facts.st_mode):
            yield Damage(output / path, f"has {facts.st_size} bytes instead of {size}")


def find_damage(path: Path, expected: tuple[int, int]) -> Damage | None:
    """Compare a file with its size and checksum; None if it is as it was written."""
    try:
        found = describe(path)
    except OSError as error:
        return _unreadable(path, error)
    if found[0] != expected[0]:
        return Damage(path, f"has {found[0]} bytes instead of {expected[0]}")
    return None if found == expected else Damage(path, "differs from its checksum")


def has_all(files: Files, output: Path) -> bool:
    """Whether all files are there with their sizes.

    Raises:
        OutputError: The system doesn't let one be looked at: it may be sound.
    """
    damage = next(find_size_damage(files, output), None)
    if damage is not None and not damage.is_certain:
        raise OutputError(f"{damage}: check the folder, then run the same command again")
    return damage is None


def _unreadable(path: Path, error: OSError) -> Damage:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Damage(path, "is gone")
    if error.errno is None:
        return Damage(path, "is no file")
    # Also a passing error of a network or a disk, or a lack of permission.
    return Damage(path, f"can't be read ({os.strerror(error.errno)})", is_certain=False)
