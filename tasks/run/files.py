"""Read and write files of the output folder: whole or not at all, with errors in words."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError, SlidesamError, in_one_line

_INTEGERS = re.compile(r"\[\n\s+((?:-?\d+,\n\s+)*-?\d+)\n\s+\]")
# Files of a group that are brought to the disk at once.
_SYNCED_AT_ONCE = 8


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        path: The file.
        data: Its content.
        sync: Whether to wait until it has reached the disk, under its name.

    Raises:
        OutputError: It can't be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        make_folder(path.parent, sync=sync)
        with beside.open("wb") as stream:
            stream.write(data)
            if sync:
                # Without it a power cut can leave the new name on an empty file.
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise make_output_error(path, error) from error


def make_folder(path: Path, *, sync: bool = True) -> None:
    """Make a folder and those above it, unless they are there.

    Args:
        path: The folder.
        sync: Whether to wait until the names of the new folders have reached the disk.

    Raises:
        OSError: It can't be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent, sync=sync)
    path.mkdir(exist_ok=True)
    if sync:
        _sync_folder(path.parent)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the content of files has reached the disk; their names have with `sync_folders`, which is called next.

    Raises:
        OutputError: A file can't be written to the disk, or isn't there.
    """
    # The system writes what waits at one moment at once: of 64 files one takes 0.2 ms, each alone 4 ms.
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:
        for _ in threads.map(partial(_sync, synchronize=_sync_path), paths):
            pass


def sync_folders(paths: Iterable[Path]) -> None:
    """Wait until the names of the files in folders have reached the disk: those made, renamed and removed.

    Raises:
        OutputError: A folder can't be written to the disk, or isn't there.
    """
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:
        for _ in threads.map(partial(_sync, synchronize=_sync_folder), dict.fromkeys(paths)):
            pass


def remove_synced(*paths: Path) -> None:
    """Remove files that vouch for others, and wait until they are gone from the disk too: now the others may be changed.

    Raises:
        OutputError: One can't be removed.
    """
    for path in paths:
        with output_errors(path):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue
            _sync_folder(path.parent)


def _sync(path: Path, synchronize: Callable[[Path], None]) -> None:
    with output_errors(path):
        synchronize(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    try:
        _sync_path(path)
    except OSError as error:
        # Some file systems (CIFS, FUSE) synchronize no folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def make_output_error(path: Path, error: OSError) -> OutputError:
    """Make the error for a file of the output that can't be written."""
    reason = os.strerror(error.errno) if error.errno else in_one_line(error)
    cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return OutputError(f"{path} can't be written ({reason}): {cure}, then run the same command again")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about a file of the output into words."""
    try:
        yield
    except SlidesamError:
        raise
    except OSError as error:
        raise make_output_error(path, error) from error


def write_json(path: Path, value: object, *, sync: bool = True) -> None:
    """Write JSON atomically; a list of nothing but integers takes one line."""
    text = json.dumps(value, indent=2, default=str)
    text = _INTEGERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    write_atomic(path, f"{text}\n".encode(), sync=sync)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON mapping; None if there is no such file or it is damaged."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def save_arrays(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> None:
    """Write named arrays into one file, atomically."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write one array that can be memory-mapped, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote.

    Raises:
        OutputError: The file is damaged; it is removed, so that the next run makes it again.
    """
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error
