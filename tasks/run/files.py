"""Read and write files of the output folder: whole or not at all, with errors in words."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import google_crc32c

from slidesam.tasks.errors import OutputError, SlidesamError, in_one_line

_INTEGERS = re.compile(r"\[\n\s+((?:-?\d+,\n\s+)*-?\d+)\n\s+\]")
# The key of a JSON file's own checksum.
_CHECKSUM, _LARGEST_JSON = "crc32c", 2**28
# Files of a group that are brought to the disk at once.
_SYNCED_AT_ONCE = 8


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file as `replacing` does.

    Args:
        path: The file.
        data: Its content.
        sync: See `replacing`.

    Raises:
        OutputError: It can't be written.
    """
    with replacing(path, sync=sync) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        path: The file.
        sync: Whether to wait until it has reached the disk, under its name.

    Raises:
        OutputError: It can't be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        make_folder(path.parent, sync=sync)
        with beside.open("w+b") as stream:
            yield stream
            if sync:
                # Without it a power cut can leave the new name on an empty file.
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(path)
        if sync:
            _sync_folder(path.parent)
    except BaseException as error:
        # Whatever ended it: nothing half-written stays.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, SlidesamError):
            raise make_output_error(path, error) from error
        raise


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
        # Some file systems (CIFS, FUSE) synchronize no folder; a folder that may be written but not listed can't be opened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise


def make_output_error(path: Path, error: OSError, verb: str = "written") -> OutputError:
    """Make the error for a file of the output that can't be written, or read."""
    reason = os.strerror(error.errno) if error.errno else in_one_line(error)
    cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    if error.errno == errno.EISDIR:
        cure = "move away the folder that is in its place"
    return OutputError(f"{path} can't be {verb} ({reason}): {cure}, then run the same command again")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about a file of the output into words."""
    try:
        yield
    except SlidesamError:
        raise
    except OSError as error:
        raise make_output_error(path, error) from error


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write a JSON mapping atomically, with a checksum; a list of nothing but integers takes one line."""
    content = json.loads(json.dumps(value, default=str))
    text = json.dumps(content | {_CHECKSUM: _checksum(content)}, indent=2)
    text = _INTEGERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    write_atomic(path, f"{text}\n".encode(), sync=sync)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON mapping; None if there is none, it is damaged, or what is there is no file. Older ones have no checksum.

    Raises:
        OutputError: The system doesn't let it be read.
    """
    try:
        data = _read_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise make_output_error(path, error, "read") from error
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            return None
        checksum = value.pop(_CHECKSUM, None)
        return value if checksum is None or checksum == _checksum(value) else None
    except (ValueError, RecursionError):
        # No JSON, no UTF-8, a number of thousands of digits, lists in lists without end.
        return None


def _read_file(path: Path) -> bytes:
    """Read a file; nothing of a FIFO, a device or a file that is larger than any that was written here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        return stream.read() if stat.S_ISREG(facts.st_mode) and facts.st_size <= _LARGEST_JSON else b""


def _checksum(content: dict[str, Any]) -> str:
    """Return the checksum of a JSON mapping's content, whatever its form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"
