"""Files of named arrays, with facts about them: the one format of every array of the work folder. Damage to it is found.

    8 bytes    `slidesam`
    4 bytes    length of the header, little endian, as all numbers
    4 bytes    crc32c of that length and the header
    header     JSON: the file's name and the folders' it lies in, facts, and of each array dtype, shape, rows per piece, and
               of each piece its length and crc32c
    pieces     of all arrays, one after the other: whole rows, compressed by Blosc

So each byte is under a checksum, a file of another place isn't taken for this one, and a part is read and verified alone. The
file is written beside, brought to the disk and renamed: if it is there, it is whole, so it is a done-mark as well.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.run.files import make_output_error, write_atomic

_MAGIC, _PREFIX, _LENGTH = b"slidesam", struct.Struct("<8sII"), struct.Struct("<I")
# What is compressed at once, and so the least that is read.
_PIECE_BYTES = 2**20
# The header of most files comes with the first read. A longer one than the limit is damage.
_FIRST_READ, _LONGEST_HEADER = 4096, 64 * 2**20
# How many folders above a file its name has.
_NAMED_FOLDERS = 2


class Compression(NamedTuple):
    """How Blosc compresses.

    Attributes:
        name: The compressor.
        level: How hard it tries.
    """

    name: bytes
    level: int


QUICK = Compression(b"lz4", 1)
"""For tables: costs next to nothing."""
SMALL = Compression(b"lz4hc", 5)
"""For labels, which are written once, by a task that takes seconds, and read by one that does little else."""


class _Array(NamedTuple):
    """Where an array lies in its file.

    Attributes:
        dtype: Type of its numbers.
        shape: Its shape.
        rows: Rows per piece.
        starts: (pieces + 1,) where each piece begins in the file.
        checksums: (pieces,) crc32c.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int
    starts: list[int]
    checksums: list[int]


class _Header(NamedTuple):
    facts: dict[str, Any]
    arrays: dict[str, _Array]
    checksum: int


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any] | None = None, codec: Compression = QUICK
) -> None:
    """Write named arrays and facts into one file, atomically; on return they are on the disk.

    Args:
        path: The file.
        arrays: Arrays of numbers of one dimension or more.
        facts: What JSON can hold.
        codec: How they are compressed.

    Raises:
        OutputError: It can't be written.
    """
    pieces: list[bytes] = []
    described = {}
    for name, array in arrays.items():
        rows = max(1, _PIECE_BYTES // max(1, array.itemsize * math.prod(array.shape[1:])))
        starts = range(0, len(array) if array.size else 0, rows)
        stored = [_compress(np.ascontiguousarray(array[start : start + rows]), codec) for start in starts]
        lengths = [[len(piece), google_crc32c.value(piece)] for piece in stored]
        described[name] = {"dtype": array.dtype.str, "shape": array.shape, "rows": rows, "pieces": lengths}
        pieces += stored
    header = json.dumps({"name": _name(path), "facts": facts or {}, "arrays": described}).encode()
    length = _LENGTH.pack(len(header))
    prefix = _PREFIX.pack(_MAGIC, len(header), google_crc32c.value(length + header))
    write_atomic(path, b"".join([prefix, header, *pieces]))


def read_array_facts(path: Path) -> dict[str, Any] | None:
    """Read the facts of a file whose header and length are right; None if it is damaged, or there is none.

    Raises:
        OutputError: The system doesn't let it be read: it may be sound.
    """
    header = _find_header(path)
    return None if header is None else header.facts


def read_checksum(path: Path) -> int | None:
    """Read the checksum of a file whose header and length are right: another content has another one. None as `read_array_facts`.

    Raises:
        OutputError: See `read_array_facts`.
    """
    header = _find_header(path)
    return None if header is None else header.checksum


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a file.

    Raises:
        DamagedError: The file is damaged, and removed, or gone.
        OutputError: It can't be read.
    """
    file = ArrayFile(path)
    return {name: file.read(name) for name in file.names}


class ArrayFile:
    """A file of arrays, whose parts are read and verified one by one.

    Args:
        path: The file.

    Attributes:
        facts: What is known of the arrays.
        checksum: See `read_checksum`.

    Raises:
        DamagedError: The file is damaged, and removed, or gone.
        OutputError: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with _open(path) as file:
                self.facts, self._arrays, self.checksum = _read_header(path, file.fileno())
        except (OSError, ValueError) as error:
            raise _refuse(path, error) from error

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._array(name).shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows `start` to `stop` of an array.

        Raises:
            DamagedError: The file is damaged, and removed, or gone.
            OutputError: It can't be read.
        """
        array = self._array(name)
        stop = array.shape[0] if stop is None else stop
        rows = np.empty((stop - start, *array.shape[1:]), array.dtype)
        first = start // array.rows
        try:
            with _open(self._path) as file:
                for piece in range(first, -(-stop // array.rows) if rows.size else first):
                    self._read_piece(file.fileno(), array, piece, rows, start)
        except (OSError, ValueError, RuntimeError) as error:
            raise _refuse(self._path, error) from error
        return rows

    def on_demand(self, name: str) -> ArrayOnDemand:
        """Return an array whose rows are read when they are asked for."""
        return ArrayOnDemand(self, name, self._array(name))

    def _array(self, name: str) -> _Array:
        try:
            return self._arrays[name]
        except KeyError as error:
            raise _refuse(self._path, error) from error

    @staticmethod
    def _read_piece(file: int, array: _Array, piece: int, rows: NDArray[Any], start: int) -> None:
        """Read and verify a piece; put what it has of the wanted rows in its place."""
        place, end = array.starts[piece : piece + 2]
        data = os.pread(file, end - place, place)
        if len(data) != end - place or google_crc32c.value(data) != array.checksums[piece]:
            raise ValueError(f"piece {piece} differs from its checksum")
        top = piece * array.rows
        bottom = min(top + array.rows, array.shape[0])
        is_whole = start <= top and bottom <= start + len(rows)
        target = (
            rows[top - start : bottom - start] if is_whole else np.empty((bottom - top, *rows.shape[1:]), rows.dtype)
        )
        blosc.decompress(data, target)
        if not is_whole:
            first, last = max(top, start), min(bottom, start + len(rows))
            rows[first - start : last - start] = target[first - top : last - top]


class ArrayOnDemand:
    """An array of which only the rows that are asked for come into memory, verified.

    Attributes:
        values: The array; rows that weren't loaded are 0. The system gives memory to what is filled only.
    """

    def __init__(self, file: ArrayFile, name: str, array: _Array) -> None:
        self._file, self._name, self._rows = file, name, array.rows
        self.values: NDArray[Any] = np.zeros(array.shape, array.dtype)
        self._is_loaded = np.zeros(len(array.checksums), bool)

    def load(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`.

        Raises:
            DamagedError, OutputError: See `ArrayFile.read`.
        """
        self._load_pieces(range(start // self._rows, -(-stop // self._rows) if stop > start else 0))
        return self.values[start:stop]

    def load_at(self, rows: NDArray[np.int64]) -> None:
        """Load at least these rows."""
        self._load_pieces(np.unique(rows // self._rows).tolist())

    def _load_pieces(self, pieces: range | list[int]) -> None:
        for piece in pieces:
            if not self._is_loaded[piece]:
                start = piece * self._rows
                stop = min(start + self._rows, len(self.values))
                self.values[start:stop] = self._file.read(self._name, start, stop)
                self._is_loaded[piece] = True


def _compress(rows: NDArray[Any], codec: Compression) -> bytes:
    compressed: bytes = blosc.compress(rows, codec.name, codec.level, blosc.SHUFFLE)
    return compressed


def _open(path: Path) -> Any:
    # A FIFO in its place must not wait for who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _name(path: Path) -> str:
    return "/".join(path.parts[-1 - _NAMED_FOLDERS :])


def _find_header(path: Path) -> _Header | None:
    try:
        with _open(path) as file:
            return _read_header(path, file.fileno())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise make_output_error(path, error, "read") from error


def _read_header(path: Path, file: int) -> _Header:
    """Read and verify the header.

    Raises:
        OSError: The system doesn't let it be read.
        ValueError: It is damaged.
    """
    data = os.pread(file, _FIRST_READ, 0)
    if len(data) < _PREFIX.size:
        raise ValueError("too short")
    magic, length, checksum = _PREFIX.unpack_from(data)
    end = _PREFIX.size + length
    if magic != _MAGIC or length > _LONGEST_HEADER:
        raise ValueError("no file of arrays")
    if end > len(data):
        data += os.pread(file, end - len(data), len(data))
    header = data[_PREFIX.size : end]
    if google_crc32c.value(_LENGTH.pack(length) + header) != checksum:
        raise ValueError("the header differs from its checksum")
    content = json.loads(header)
    if content["name"] != _name(path):
        raise ValueError(f"it is {content['name']}")
    arrays = {}
    for name, array in content["arrays"].items():
        starts = np.cumsum([end, *(length for length, _ in array["pieces"])]).tolist()
        checksums = [checksum for _, checksum in array["pieces"]]
        arrays[name] = _Array(np.dtype(array["dtype"]), tuple(array["shape"]), array["rows"], starts, checksums)
        end = starts[-1]
    if os.fstat(file).st_size != end:
        raise ValueError("it has another length")
    return _Header(content["facts"], arrays, checksum)


def _refuse(path: Path, error: Exception) -> OutputError:
    """Return the error for a file that can't be used; remove the file if what was read of it is wrong.

    An error of the system (too many open files, a stale handle of a file server) says nothing of the file, which may be sound.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DamagedError(f"{path} is gone", "run the same command again")
    if isinstance(error, OSError):
        return make_output_error(path, error, "read")
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return DamagedError(f"{path} is damaged and was removed", "run the same command again")
