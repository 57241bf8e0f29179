"""What methods that run networks need of this machine: a device, threads, files of weights and their hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from slidesam.tasks.errors import SegmenterError

_MIB = 2**20


def choose_device(wanted: str) -> str:
    """Name of the device to compute on: cpu, cuda or mps.

    Args:
        wanted: One of them, or auto for the first at hand of CUDA, Apple's MPS, the CPU.

    Raises:
        SegmenterError: torch doesn't have it here.
    """
    import torch

    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and torch.backends.mps.is_built(),
        "cpu": True,
    }
    here = [name for name in is_there if is_there[name]]
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise SegmenterError(
            f"segmenter.device is {wanted}, but torch {torch.__version__} only has {', '.join(here)} on this machine",
            "let the profile ask for a GPU, or set segmenter.device: auto",
        )
    return wanted


def keep_to_threads() -> None:
    """Lets torch use OMP_NUM_THREADS threads, where that is set."""
    import torch

    threads = given_threads()
    if threads is not None:
        torch.set_num_threads(threads)


def given_threads() -> int | None:
    """OMP_NUM_THREADS, or None where it isn't set."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(threads) if threads.isdigit() and int(threads) > 0 else None


def given_path(model: str | None, what: str, how: str) -> Path:
    """The path of `segmenter.model`.

    Args:
        model: The setting.
        what: What it names, in words.
        how: Where to get one.

    Raises:
        SegmenterError: It isn't set, or there is nothing of that name.
    """
    if model is None:
        raise SegmenterError("setting segmenter.model is needed", f"the path of {what}. {how}")
    path = Path(model).expanduser()
    if not path.exists():
        raise SegmenterError(
            f"segmenter.model {path} is not on this machine",
            f"give the path of {what}, one that the workers see too. {how}",
        )
    return path


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in the order given; each is read once per process (1 GB: some seconds).

    Args:
        files: Weights and what belongs to them. Their names don't count.

    Returns:
        For example "sha256:...".

    Raises:
        SegmenterError: One can't be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(hash_file(path, "sha256")[0])
        except OSError as error:
            raise unreadable(path, error) from error
    return f"sha256:{digest.hexdigest()}"


def hash_file(path: Path, *algorithms: str) -> tuple[bytes, ...]:
    """Digests of a file, all from one reading; a file that hasn't changed is read once per process.

    Args:
        path: The file (375 MB: about a second).
        algorithms: Names as in `Registered.algorithm`; those that `can_hash` knows.

    Raises:
        OSError: It can't be read.
    """
    facts = path.stat()
    return _hash_file(path, facts.st_size, facts.st_mtime_ns, facts.st_ino, algorithms)


@lru_cache(maxsize=8)
def _hash_file(path: Path, size: int, mtime_ns: int, inode: int, algorithms: tuple[str, ...]) -> tuple[bytes, ...]:
    hashers = [_hasher(algorithm) for algorithm in algorithms]
    buffer = memoryview(bytearray(_MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            for hasher in hashers:
                hasher.update(buffer[:count])
    return tuple(hasher.digest() for hasher in hashers)


def can_hash(algorithm: str) -> bool:
    """Whether hashes of this kind can be made here."""
    return _hash_function(algorithm) is not None


def _hasher(algorithm: str) -> Any:
    function = _hash_function(algorithm)
    assert function is not None, algorithm
    return function()


def _hash_function(algorithm: str) -> Callable[[], Any] | None:
    """micro-sam's xxhash, which it brings along, or one of Python's."""
    if algorithm in hashlib.algorithms_available:
        return partial(hashlib.new, algorithm, usedforsecurity=False)
    if not algorithm.startswith("xxh") or importlib.util.find_spec("xxhash") is None:
        return None
    import xxhash

    return getattr(xxhash, algorithm, None)


def unreadable(path: Path, error: OSError) -> SegmenterError:
    """The error for a file of weights that is there and can't be read."""
    return SegmenterError(
        f"weights {path} can't be read ({error.strerror or error})", "let the account that runs slidesam read them"
    )
